"""The reports of the last minute, and what happened between them.

Ray's agent gets news of a process every 10 s (`metrics_report_interval_ms`), and what it answers
stays the same meanwhile. A report therefore counts once, at the time by its process's own clock
that came with it: rates are right at such steps, and no machine's clock is compared with another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from qwenfleet.cluster.live.exposition import ProcessReport, Series

REPORT_S: Final = 10.0
"""Between two reports of a process: ray 2.60's default."""
WINDOW_S: Final = 60.0
STEP_S: Final = 20.0
"""Two clocks that differ by this much over one interval: one of them was set. Two intervals are the
most that a report can be late by."""


@dataclass(frozen=True)
class Seen:
    """A report and when it came."""

    report: ProcessReport
    at_s: float
    """Monotonic seconds of this process."""
    wall_s: float
    """Seconds since the epoch, by this machine's clock."""


History: TypeAlias = Mapping[str, tuple[Seen, ...]]
"""By process, never empty, the oldest first."""


def extended(
    history: History, reports: Iterable[ProcessReport], now_s: float, wall_s: float
) -> dict[str, tuple[Seen, ...]]:
    """With what was just read; processes that have been silent for a window are left out."""
    kept = {name: seen for name, seen in history.items() if now_s - seen[-1].at_s <= WINDOW_S}
    for report in reports:
        seen = Seen(report, now_s, wall_s)
        kept[report.process] = _followed(kept.get(report.process, ()), seen)
    return kept


def _followed(before: tuple[Seen, ...], seen: Seen) -> tuple[Seen, ...]:
    clock_s = seen.report.clock_s
    if not before:
        # Made up to one interval ago; the clocks tell when, if they agree.
        age_s = min(max(seen.wall_s - clock_s, 0.0), REPORT_S)
        return (replace(seen, at_s=seen.at_s - age_s),)
    last = before[-1]
    elapsed_s = clock_s - last.report.clock_s
    if elapsed_s == 0:  # the same report, or the rest of it
        return (*before[:-1], replace(last, report=seen.report))
    if elapsed_s < 0 or abs(elapsed_s - (seen.at_s - last.at_s)) > STEP_S:
        return (seen,)
    first = 0
    while first + 1 < len(before) and before[first + 1].report.clock_s <= clock_s - WINDOW_S:
        first += 1
    return (*before[first:], seen)


@dataclass(frozen=True)
class Change:
    """What one process's counters went up by."""

    seconds: float
    by: Mapping[Series, float]

    def rate(self, series: Series) -> float:
        """Per second."""
        return self.by.get(series, 0.0) / self.seconds


def change(seen: tuple[Seen, ...], over_s: float = WINDOW_S - REPORT_S / 2) -> Change | None:
    """From the newest report that is at least `over_s` older than the last one, or from the oldest;
    None as long as there is one report only. Gauges are in it too, and mean nothing."""
    if len(seen) < 2:
        return None
    last = seen[-1].report.clock_s
    first = len(seen) - 2
    while first > 0 and seen[first].report.clock_s > last - over_s:
        first -= 1
    by: dict[Series, float] = {}
    for older, newer in zip(seen[first:], seen[first + 1 :], strict=False):
        for series, value in newer.report.values.items():
            before = older.report.values.get(series, 0.0)
            # A counter that went down began again at 0.
            by[series] = by.get(series, 0.0) + (value - before if value >= before else value)
    return Change(last - seen[first].report.clock_s, by)


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """As PromQL's `histogram_quantile`: `buckets` holds cumulative counts by upper bound, with one
    for infinity. The upper bound of the last finite bucket when it lies above; None without a
    count."""
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank = q * buckets[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == float("inf"):
                return lower
            count = buckets[bound] - below
            return lower + (bound - lower) * ((rank - below) / count if count > 0 else 1.0)
        lower, below = bound, buckets[bound]
    return lower
