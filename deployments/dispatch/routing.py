"""Routing: pick the engine that is predicted to answer first, in seconds. Pure.

Engines of one model may differ in speed, and each reports its own. An engine of unknown speed
counts as having the median of the known speeds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple

STREAM_WORK_TOKENS: Final = 128
"""Tokens that a running stream still has to generate: an assumption, about half a short chat
answer."""

STREAM_STEPS: Final = 1.0
"""What each stream already on an engine costs a new request, in decode steps: an answer of some 200
tokens, each of which takes half a percent longer. An assumption; it only has to rank engines, and
the prompt's own length, which spans five orders of magnitude, dominates it."""

KV_EASE: Final = 0.9
"""KV cache usage above which a new request may have to wait: vLLM admits a request only when all
blocks of its next step are free, and preempts when streams outgrow what is left."""

KV_WAIT_STEPS: Final = float(STREAM_WORK_TOKENS)
"""Decode steps that a request waits if the KV cache is full: until a running stream has generated
its remaining tokens."""

UNKNOWN_TOKENS_PER_S: Final = 8192.0
"""Prefill rate assumed for every engine while all are unknown: it cancels out. A power of two, so
that equal work stays equal in seconds."""

MOVING_STEPS: Final = 2
"""Prefill steps that moving streams may queue on one engine: one running, and one that follows it
without a pause."""


class Target(NamedTuple):
    """One data-parallel rank of one engine, as the gateway sees it now. A tuple for speed: a
    gateway creates one for each rank of each engine at each request."""

    engine: str
    dp_rank: int
    streams: int
    """Running and waiting requests, including those just sent."""
    queued_prefill_tokens: int
    """Prompt tokens of requests without output, including those just sent."""
    max_streams: int = 0
    """Streams that the rank runs at a time; 0 if unknown."""
    step_tokens: int = 0
    """Prompt tokens that one step can prefill; 0 if unknown."""
    prefill_tokens_per_s: float = 0.0
    """Prompt tokens prefilled per second; 0 while unknown."""
    decode_step_s: float = 0.0
    """Seconds of a step that only decodes; 0 while unknown."""
    kv_usage: float = 0.0
    """Share of the KV cache in use by streams, 0 to 1."""


@dataclass(frozen=True)
class Speed:
    """The speed assumed for an engine whose own is unknown."""

    prefill_tokens_per_s: float
    decode_step_s: float


def middle_speed(targets: Sequence[Target]) -> Speed:
    """Median of the known speeds. If only one of the two figures is known, the other follows from
    counting a stream as STREAM_WORK_TOKENS of prompt."""
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
    """Predicted seconds from sending a request of `prompt_tokens` to its first output; parts that
    are equal on all engines are left out."""
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
    """True if a stream that moves to this rank would start at once and delay its streams by no more
    than MOVING_STEPS of prefill at median speed. A longer stream needs a rank without queued
    prefill."""
    if target.max_streams and target.streams >= target.max_streams:
        return False
    if target.queued_prefill_tokens == 0 or not target.step_tokens:
        return True
    queued: float = target.queued_prefill_tokens + prefill_tokens
    if target.prefill_tokens_per_s > 0:
        queued *= middle.prefill_tokens_per_s / target.prefill_tokens_per_s
    return queued <= MOVING_STEPS * target.step_tokens


def with_room(targets: Sequence[Target], prefill_tokens: int) -> list[Target]:
    """The targets with room for a moving stream of `prefill_tokens`."""
    middle = middle_speed(targets)
    return [target for target in targets if has_room(target, prefill_tokens, middle)]


def choose(targets: Sequence[Target], prompt_tokens: int, rng: random.Random) -> Target | None:
    """The target with the least predicted seconds, ties broken at random; None without targets."""
    if not targets:
        return None
    middle = middle_speed(targets)
    seconds = [predicted_s(target, prompt_tokens, middle) for target in targets]
    least = min(seconds)
    return rng.choice([t for t, s in zip(targets, seconds, strict=True) if s == least])
