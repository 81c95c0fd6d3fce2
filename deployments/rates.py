"""Rates: how fast one data-parallel rank of an engine is, learned from the steps it makes. Pure.

A rank prefills at a rate and decodes a step at a time, and every step may do both. What is learned
are sums of late, in which a sample weighs as much as it is large.
"""

from __future__ import annotations

import math
from typing import Final

SAMPLE_TOKENS: Final = 512
"""New prompt tokens of one sample. Fewer, behind a prefix that is cached, say more about the step
that they share: a decode step of an H100 takes as long as some 400 tokens (20 ms, 20,000 tokens/s,
assumed)."""
SAMPLE_STEPS: Final = 16
"""Decode steps of one sample: a host that is busy takes two steps late and at once."""
ENOUGH: Final = 3
"""Samples before there is an estimate; it begins with the middle one, so that one compilation among
the first does not count."""
CLIP: Final = 4.0
"""A sample counts as no faster or slower than the estimate by more than this, so that a stall moves
it as a slow step does."""
HALF_LIFE_S: Final = 10.0
"""Half of an estimate is of the last 10 s of work, however long ago: idle time says nothing. No
single sample takes more than half of it away."""
FORGET_S: Final = 300.0
"""An estimate that nothing confirmed for so long is unknown again. An engine that seemed slow gets
little work, so that it could not show for itself that it no longer is."""
GRID: Final = 4
"""Estimates are told in steps of a quarter octave (19 %), so that like engines tie."""
LEAST_PREFILL_SHARE: Final = 0.5
"""Of the time of steps that prefill: the larger part may be what a decode step takes anyway, but a
GPU that reads its weights once for both hides that."""


class Rate:
    """An amount per second, of late."""

    def __init__(self) -> None:
        self._first: list[tuple[float, float]] = []
        self._amount = 0.0
        self._seconds = 0.0
        self._per_s = 0.0
        self._noted_at = -math.inf

    def note(self, amount: float, seconds: float, now: float) -> None:
        """One sample, which ended at `now`. One without duration is none."""
        if seconds <= 0:
            return
        if now - self._noted_at > FORGET_S:
            self._first.clear()
        self._noted_at = now
        if len(self._first) < ENOUGH:
            self._first.append((amount, seconds))
            by_rate = sorted(self._first, key=lambda sample: sample[0] / sample[1])
            self._amount, self._seconds = by_rate[len(by_rate) // 2]
        else:
            expected_s = amount * self._seconds / self._amount
            counted_s = min(max(seconds, expected_s / CLIP), expected_s * CLIP)
            kept = 0.5 ** min(max(seconds, counted_s) / HALF_LIFE_S, 1.0)
            self._amount = kept * self._amount + amount
            self._seconds = kept * self._seconds + counted_s
        octave = math.log2(self._amount / self._seconds)
        self._per_s = 2.0 ** (round(octave * GRID) / GRID)

    def per_s(self, now: float) -> float:
        """0.0 while it is unknown."""
        is_known = len(self._first) == ENOUGH and now - self._noted_at <= FORGET_S
        return self._per_s if is_known else 0.0


class RankRates:
    """One rank, as its host sees it: attempts that its core gets, and steps. Times are one clock's
    seconds."""

    def __init__(self) -> None:
        self._prefill = Rate()
        self._decode = Rate()
        self._held = 0
        self._unanswered = 0
        self._since: float | None = None
        """Its last step, or when work came to it; None while it has none."""
        self._had_prompt = False
        """Whether a prompt was unanswered then: one that came later is not in this step."""
        self._has_answered = False
        """Whether the step at hand answers a prompt."""
        self._is_spoiled = False
        """Whether the step at hand worked on a prompt of which nobody says how much was new."""
        self._prefill_tokens = 0
        self._prefill_steps = 0
        self._prefill_s = 0.0
        self._decode_steps = 0
        self._decode_s = 0.0

    def came(self, now: float) -> None:
        """The core was given an attempt."""
        if not self._held:
            self._since = now
            self._had_prompt = True
            self._start_sample()
        self._held += 1
        self._unanswered += 1

    def answered(self, new_tokens: int | None) -> None:
        """The step that ends now made an attempt's first output. `new_tokens` of its prompt were
        not cached; None when nobody said how many."""
        self._unanswered -= 1
        self._has_answered = True
        if new_tokens is None:
            self._is_spoiled = True
        else:
            self._prefill_tokens += new_tokens

    def left(self, *, is_answered: bool) -> None:
        """The core no longer has an attempt."""
        self._held -= 1
        if not is_answered:
            self._unanswered -= 1
            self._is_spoiled = True

    def stepped(self, now: float, waiting: int = 0) -> None:
        """The core made a step; what it answered was told before. `waiting` attempts were left in
        its queue, where nothing prefills them."""
        if self._since is not None:
            has_prompt = self._unanswered > waiting or self._is_spoiled
            if self._has_answered or (self._had_prompt and has_prompt):
                self._note_prefill(now - self._since, now)
            else:
                self._note_decode(now - self._since, now)
        self._since = now if self._held else None
        self._had_prompt = self._unanswered > 0
        self._has_answered = False

    def prefill_tokens_per_s(self, now: float) -> float:
        """New prompt tokens per second of prefill; 0.0 while unknown."""
        return self._prefill.per_s(now)

    def decode_step_s(self, now: float) -> float:
        """Seconds of a step that only decodes; 0.0 while unknown."""
        steps_per_s = self._decode.per_s(now)
        return 1 / steps_per_s if steps_per_s else 0.0

    def _note_decode(self, duration_s: float, now: float) -> None:
        self._decode_steps += 1
        self._decode_s += duration_s
        if self._decode_steps == SAMPLE_STEPS:
            self._decode.note(SAMPLE_STEPS, self._decode_s, now)
            self._decode_steps, self._decode_s = 0, 0.0

    def _note_prefill(self, duration_s: float, now: float) -> None:
        """Prompts that wait together are one sample, once it is large enough; what is still too
        small when none waits any more is dropped."""
        self._prefill_steps += 1
        self._prefill_s += duration_s
        is_large = self._prefill_tokens >= SAMPLE_TOKENS and not self._is_spoiled
        if is_large:
            decode_s = self._prefill_steps * self.decode_step_s(now)
            seconds = max(self._prefill_s - decode_s, self._prefill_s * LEAST_PREFILL_SHARE)
            self._prefill.note(self._prefill_tokens, seconds, now)
        if is_large or self._is_spoiled or not self._unanswered:
            self._start_sample()

    def _start_sample(self) -> None:
        self._is_spoiled = False
        self._prefill_tokens = 0
        self._prefill_steps = 0
        self._prefill_s = 0.0
