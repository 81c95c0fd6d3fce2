"""LearnedRate: how much work of one kind an engine does per second, learned from samples. Pure."""

from __future__ import annotations

import math
from typing import Final

ENOUGH: Final = 3
"""Samples before there is an estimate. It starts from their median, so that one compilation among
them does not count."""
CLIP: Final = 4.0
"""A sample counts as at most this factor faster or slower than the estimate, so that a stall moves
it no more than a slow step does."""
HALF_LIFE_S: Final = 10.0
"""The last 10 s of work make up half of an estimate, however long ago they were: idle time carries
no information. A single sample replaces at most half of it."""
FORGET_S: Final = 300.0
"""Seconds without a sample after which an estimate is unknown again. An engine that seemed slow
gets little work and so cannot show that it has recovered."""
GRID: Final = 4
"""Estimates are reported in steps of a quarter octave (19 %), so that similar engines tie."""


class LearnedRate:
    """A recent amount of work per second."""

    def __init__(self) -> None:
        self._first: list[tuple[float, float]] = []
        self._amount = 0.0
        self._seconds = 0.0
        self._per_s = 0.0
        self._noted_at = -math.inf

    def note(self, amount: float, seconds: float, now: float) -> None:
        """Add a sample that ended at `now`. A sample without duration is ignored."""
        if seconds <= 0:
            return
        if now - self._noted_at > FORGET_S:
            self._first.clear()
        self._noted_at = now
        if len(self._first) < ENOUGH:
            # Begin with the median of the first samples.
            self._first.append((amount, seconds))
            by_rate = sorted(self._first, key=lambda sample: sample[0] / sample[1])
            self._amount, self._seconds = by_rate[len(by_rate) // 2]
        else:
            # Clip outliers, then weigh by time worked.
            expected_s = amount * self._seconds / self._amount
            counted_s = min(max(seconds, expected_s / CLIP), expected_s * CLIP)
            kept = 0.5 ** min(max(seconds, counted_s) / HALF_LIFE_S, 1.0)
            self._amount = kept * self._amount + amount
            self._seconds = kept * self._seconds + counted_s
        # Round to the grid, so that similar engines tie.
        octave = math.log2(self._amount / self._seconds)
        self._per_s = 2.0 ** (round(octave * GRID) / GRID)

    def per_s(self, now: float) -> float:
        """The rate; 0.0 while unknown."""
        is_known = len(self._first) == ENOUGH and now - self._noted_at <= FORGET_S
        return self._per_s if is_known else 0.0
