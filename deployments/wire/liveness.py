"""Liveness: the condition of a core, and bounds on silence that are learned from earlier silence.
Pure."""

from __future__ import annotations

from enum import Enum
from typing import Final

WINDOW_S: Final = 60.0
"""The longest duration is forgotten after one to two windows."""
OVERSLEPT_S: Final = 0.5
"""A watchdog that wakes up this late stalled itself (stopped, or without CPU) and must not judge
others."""
ENOUGH: Final = 20
"""Samples needed before a bound relies on them."""


class Condition(Enum):
    """The health of a core."""

    STEADY = "steady"
    SLOW = "slow"
    """It gets no new work and keeps its streams."""
    FROZEN = "frozen"
    """Its streams move to other engines."""


class LearnedBound:
    """A multiple of the longest recent duration, between a floor and a ceiling; `unlearned_s` until
    there are enough samples. All in seconds."""

    def __init__(self, factor: float, floor_s: float, ceiling_s: float, unlearned_s: float) -> None:
        self._factor = factor
        self._floor_s = floor_s
        self._ceiling_s = ceiling_s
        self._unlearned_s = unlearned_s
        self._samples = 0
        self._earlier_s = 0.0
        self._longest_s = 0.0
        self._window_ends_at = 0.0

    def note(self, duration_s: float, now: float) -> None:
        """Record a duration that ended at `now`."""
        if now >= self._window_ends_at:
            is_next = now < self._window_ends_at + WINDOW_S
            self._earlier_s = self._longest_s if is_next else 0.0
            self._longest_s = 0.0
            self._window_ends_at = now + WINDOW_S
        self._longest_s = max(self._longest_s, duration_s)
        self._samples += 1

    @property
    def longest_s(self) -> float:
        return max(self._earlier_s, self._longest_s)

    @property
    def seconds(self) -> float:
        learned_s = min(self._ceiling_s, max(self._floor_s, self._factor * self.longest_s))
        return learned_s if self._samples >= ENOUGH else max(self._unlearned_s, learned_s)
