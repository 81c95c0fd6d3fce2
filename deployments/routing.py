"""Which engine takes a request: the one with the least predicted work. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

STREAM_WORK_TOKENS: Final = 128
"""Work of one running or waiting stream, in prompt tokens: an assumption, about half a short chat
answer. It only has to rank engines; a prompt's own length, which spreads over five decades,
dominates it."""


@dataclass(frozen=True)
class Target:
    """One data-parallel rank of one engine, as the gateway sees it now."""

    engine: str
    dp_rank: int
    streams: int
    """Running and waiting requests, those on their way included."""
    queued_prefill_tokens: int
    """Prompt tokens that nothing has answered yet, those on their way included."""


def predicted_work_tokens(target: Target) -> int:
    """What stands before a new request on this target, in prompt tokens."""
    return target.queued_prefill_tokens + STREAM_WORK_TOKENS * target.streams


def choose(targets: Sequence[Target], rng: random.Random) -> Target | None:
    """The target with the least predicted work, ties at random; None when there is none."""
    if not targets:
        return None
    least = min(map(predicted_work_tokens, targets))
    return rng.choice([target for target in targets if predicted_work_tokens(target) == least])
