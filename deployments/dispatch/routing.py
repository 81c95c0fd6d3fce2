"""Which engine takes a request: the one with the least predicted work, in seconds. Pure.

Engines of one model may differ in speed, and each has told how fast it is. One of which nothing is
known counts as fast as the middle one of those that are known.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple

STREAM_WORK_TOKENS: Final = 128
"""Tokens that a stream has before it: an assumption, about half a short chat answer."""

STREAM_STEPS: Final = 1.0
"""What one more stream costs a new request, in decode steps of the engine: an answer of some 200
tokens, each of which takes half a percent longer. An assumption; it only has to rank engines, and a
prompt's own length, which spreads over five decades, dominates it."""

KV_EASE: Final = 0.9
"""Share of the KV cache above which a new request may find no room: vLLM admits one only when all
blocks of its next step are free, and preempts when streams outgrow what is left."""

KV_WAIT_STEPS: Final = float(STREAM_WORK_TOKENS)
"""Decode steps that a request waits where the KV cache is full: until a stream that runs there has
made what it has before it."""

UNKNOWN_TOKENS_PER_S: Final = 8192.0
"""Prefill rate of every engine while nothing is known of any: it cancels out. A power of two, so
that equal work stays equal in seconds."""

MOVING_STEPS: Final = 2
"""Prefill steps that streams on the move may have queued on one engine: one that runs, one that
follows without a pause."""


class Target(NamedTuple):
    """One data-parallel rank of one engine, as the gateway sees it now; a tuple, because a gateway
    makes one for each rank of each engine at each request."""

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
    prefill_tokens_per_s: float = 0.0
    """Prompt tokens that it prefills per second; 0 while unknown."""
    decode_step_s: float = 0.0
    """Seconds of a step that only decodes; 0 while unknown."""
    kv_usage: float = 0.0
    """Share of its KV cache that streams use, 0 to 1."""


@dataclass(frozen=True)
class Speed:
    """How fast an engine of which nothing is known is taken to be."""

    prefill_tokens_per_s: float
    decode_step_s: float


def middle_speed(targets: Sequence[Target]) -> Speed:
    """The median of what is known of these. Where nothing is known of one of the two, a stream is
    worth STREAM_WORK_TOKENS of prompt."""
    rates = [t.prefill_tokens_per_s for t in targets if t.prefill_tokens_per_s > 0]
    steps = [t.decode_step_s for t in targets if t.decode_step_s > 0]
    if rates:
        rate = median(rates)
    elif steps:
        rate = STREAM_WORK_TOKENS / (STREAM_STEPS * median(steps))
    else:
        rate = UNKNOWN_TOKENS_PER_S
    return Speed(rate, median(steps) if steps else STREAM_WORK_TOKENS / rate / STREAM_STEPS)


def predicted_s(target: Target, prompt_tokens: int, middle: Speed) -> float:
    """Seconds from sending a request of so many tokens to its first output, as far as engines
    differ in it."""
    rate, step_s = target.prefill_tokens_per_s, target.decode_step_s
    if not rate > 0:
        rate = middle.prefill_tokens_per_s
    if not step_s > 0:
        step_s = middle.decode_step_s
    seconds = (target.queued_prefill_tokens + prompt_tokens) / rate
    seconds += STREAM_STEPS * step_s * target.streams
    if target.kv_usage > KV_EASE:
        seconds += KV_WAIT_STEPS * step_s * (target.kv_usage - KV_EASE) / (1 - KV_EASE)
    return seconds


def has_room(target: Target, prefill_tokens: int, middle: Speed) -> bool:
    """Whether a stream that moves here starts at once and delays those that run here by no longer
    than an engine of middle speed takes for MOVING_STEPS of prefill. A stream that is longer than
    that moves alone."""
    if target.max_streams and target.streams >= target.max_streams:
        return False
    if target.queued_prefill_tokens == 0 or not target.step_tokens:
        return True
    queued: float = target.queued_prefill_tokens + prefill_tokens
    if target.prefill_tokens_per_s > 0:
        queued *= middle.prefill_tokens_per_s / target.prefill_tokens_per_s
    return queued <= MOVING_STEPS * target.step_tokens


def with_room(targets: Sequence[Target], prefill_tokens: int) -> list[Target]:
    """Those that have room for a stream of so many tokens."""
    middle = middle_speed(targets)
    return [target for target in targets if has_room(target, prefill_tokens, middle)]


def choose(targets: Sequence[Target], prompt_tokens: int, rng: random.Random) -> Target | None:
    """The target with the least predicted seconds, ties at random; None when there is none."""
    if not targets:
        return None
    middle = middle_speed(targets)
    seconds = [predicted_s(target, prompt_tokens, middle) for target in targets]
    least = min(seconds)
    return rng.choice([t for t, s in zip(targets, seconds, strict=True) if s == least])
