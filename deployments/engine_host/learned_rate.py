"""LearnedRate: how much of something an engine does per second, learned from samples. Pure."""

from __future__ import annotations

import math
from typing import Final

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


class LearnedRate:
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
