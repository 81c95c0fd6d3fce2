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

MOVING_STEPS: Final = 2
"""Prefill steps that streams on the move may have queued on one engine: one that runs, one that
follows without a pause."""


@dataclass(frozen=True)
class Target:
    """One data-parallel rank of one engine, as the gateway sees it now."""

    engine: str
    dp_rank: int
    streams: int
    """Running and waiting requests, those on their way included."""
    queued_prefill_tokens: int
    """Prompt tokens that nothing has answered yet, those on their way included."""
    max_streams: int = 0
    """Streams that it runs at a time; 0 when it does not say."""
    step_tokens: int = 0
    """Prompt tokens that one step can prefill; 0 when it does not say."""


def predicted_work_tokens(target: Target) -> int:
    """What stands before a new request on this target, in prompt tokens."""
    return target.queued_prefill_tokens + STREAM_WORK_TOKENS * target.streams


def has_room(target: Target, prefill_tokens: int) -> bool:
    """Whether a stream that moves here starts at once and delays those that run here by no more
    than MOVING_STEPS of prefill. A stream that is longer than that moves alone."""
    if target.max_streams and target.streams >= target.max_streams:
        return False
    if target.queued_prefill_tokens == 0 or not target.step_tokens:
        return True
    queued = target.queued_prefill_tokens + prefill_tokens
    return queued <= MOVING_STEPS * target.step_tokens


def choose(targets: Sequence[Target], rng: random.Random) -> Target | None:
    """The target with the least predicted work, ties at random; None when there is none."""
    if not targets:
        return None
    least = min(map(predicted_work_tokens, targets))
    return rng.choice([target for target in targets if predicted_work_tokens(target) == least])
