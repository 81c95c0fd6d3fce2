"""RankSpeed: the speed of one data-parallel rank of an engine, learned from its steps. Pure.

A rank prefills at a rate and decodes a step at a time; any step may do both.
"""

from __future__ import annotations

from typing import Final

from qwenfleet.deployments.engine_host.learned_rate import LearnedRate

SAMPLE_TOKENS: Final = 512
"""New prompt tokens of one sample. Fewer tokens, after a cached prefix, would mostly measure the
step that they share: a decode step of an H100 takes as long as some 400 tokens (20 ms, 20,000
tokens/s, assumed)."""
SAMPLE_STEPS: Final = 16
"""Decode steps of one sample: a busy host may read two steps late and at once."""
LEAST_PREFILL_SHARE: Final = 0.5
"""Smallest share of a prefilling step's time that counts as prefill: a decode step alone may take
most of that time, but a GPU that reads its weights once for both hides it."""


class RankSpeed:
    """One rank as its host sees it: attempts given to its core, and steps. All times are seconds of
    one clock."""

    def __init__(self) -> None:
        self._prefill = LearnedRate()
        self._decode = LearnedRate()
        self._held = 0
        self._unanswered = 0
        self._since: float | None = None
        """When the last step ended, or when work came to an idle rank; None while idle."""
        self._had_prompt = False
        """Whether a prompt was unanswered then: one that came later is not in this step."""
        self._has_answered = False
        """Whether the current step answers a prompt."""
        self._is_spoiled = False
        """Whether the current step worked on a prompt with an unknown number of new tokens."""
        self._prefill_tokens = 0
        self._prefill_steps = 0
        self._prefill_s = 0.0
        self._decode_steps = 0
        self._decode_s = 0.0

    def came(self, now: float) -> None:
        """Record an attempt given to the core."""
        if not self._held:
            self._since = now
            self._had_prompt = True
            self._start_sample()
        self._held += 1
        self._unanswered += 1

    def answered(self, new_tokens: int | None) -> None:
        """Record an attempt's first output in the step that ends now. `new_tokens` of its prompt
        were not cached; None if unknown."""
        self._unanswered -= 1
        self._has_answered = True
        if new_tokens is None:
            self._is_spoiled = True
        else:
            self._prefill_tokens += new_tokens

    def left(self, *, is_answered: bool) -> None:
        """Record that the core no longer has an attempt."""
        self._held -= 1
        if not is_answered:
            self._unanswered -= 1
            self._is_spoiled = True

    def stepped(self, now: float, waiting: int = 0) -> None:
        """Record a step of the core, after `answered` for each of its first outputs. `waiting`
        attempts stayed in its queue and were not prefilled."""
        if self._since is not None:  # an idle core's first step has no start
            # Queued prompts were not prefilled; aborted ones may have been.
            has_prompt = self._unanswered > waiting or self._is_spoiled
            # A prompt that came during the step waited.
            if self._has_answered or (self._had_prompt and has_prompt):
                self._note_prefill(now - self._since, now)
            else:
                self._note_decode(now - self._since, now)
        self._since = now if self._held else None  # do not count idle time
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
        """Prompts that are prefilled together form one sample, once it is large enough; a sample
        that is still too small when no prompt waits is dropped."""
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
