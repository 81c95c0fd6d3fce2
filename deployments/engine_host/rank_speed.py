"""RankSpeed: how fast one data-parallel rank of an engine is, learned from its steps. Pure.

A rank prefills at a rate and decodes a step at a time, and every step may do both.
"""

from __future__ import annotations

from typing import Final

from qwenfleet.deployments.engine_host.learned_rate import LearnedRate

SAMPLE_TOKENS: Final = 512
"""New prompt tokens of one sample. Fewer, behind a prefix that is cached, say more about the step
that they share: a decode step of an H100 takes as long as some 400 tokens (20 ms, 20,000 tokens/s,
assumed)."""
SAMPLE_STEPS: Final = 16
"""Decode steps of one sample: a host that is busy takes two steps late and at once."""
LEAST_PREFILL_SHARE: Final = 0.5
"""Of the time of steps that prefill: the larger part may be what a decode step takes anyway, but a
GPU that reads its weights once for both hides that."""


class RankSpeed:
    """One rank, as its host sees it: attempts that its core gets, and steps. Times are one clock's
    seconds."""

    def __init__(self) -> None:
        self._prefill = LearnedRate()
        self._decode = LearnedRate()
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
        if self._since is not None:  # an idle core's first step has no start
            # Queued prompts were not prefilled; aborted ones may have been.
            has_prompt = self._unanswered > waiting or self._is_spoiled
            # A prompt that came during the step waited.
            if self._has_answered or (self._had_prompt and has_prompt):
                self._note_prefill(now - self._since, now)
            else:
                self._note_decode(now - self._since, now)
        self._since = now if self._held else None  # idle time is no step
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
