"""History of the last minute's reports, and the changes between them.

Ray's agent gets a report from each process every 10 s (`metrics_report_interval_ms`), and repeats
it until the next one. A report therefore counts once, at the time of the process's own clock that
came with it. So rates are right in spite of the steps, and clocks of two machines are never
compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from qwenfleet.cluster.live.exposition import ProcessReport, Series

REPORT_S: Final = 10.0
"""Seconds between two reports of a process: ray 2.60's default."""
WINDOW_S: Final = 60.0
STEP_S: Final = 20.0
"""Difference between two clocks over one interval that means that one of them was set. A report
can be late by two intervals at most."""


@dataclass(frozen=True)
class Seen:
    """A report and its arrival."""

    report: ProcessReport
    at_s: float
    """Arrival in monotonic seconds of this process."""
    wall_s: float
    """Arrival in seconds since the epoch, by this machine's clock."""


History: TypeAlias = Mapping[str, tuple[Seen, ...]]
"""Reports by process, the oldest first; the tuples are never empty."""


def extended(
    history: History, reports: Iterable[ProcessReport], now_s: float, wall_s: float
) -> dict[str, tuple[Seen, ...]]:
    """Add the reports just read, and drop processes that have not reported for a window."""
    kept = {name: seen for name, seen in history.items() if now_s - seen[-1].at_s <= WINDOW_S}
    for report in reports:
        seen = Seen(report, now_s, wall_s)
        kept[report.process] = _followed(kept.get(report.process, ()), seen)
    return kept


def _followed(before: tuple[Seen, ...], seen: Seen) -> tuple[Seen, ...]:
    clock_s = seen.report.clock_s
    if not before:
        # made up to one interval ago; the clocks tell when if they agree
        age_s = min(max(seen.wall_s - clock_s, 0.0), REPORT_S)
        return (replace(seen, at_s=seen.at_s - age_s),)
    last = before[-1]
    elapsed_s = clock_s - last.report.clock_s
    if elapsed_s == 0:  # the same report, or its second part
        return (*before[:-1], replace(last, report=seen.report))
    if elapsed_s < 0 or abs(elapsed_s - (seen.at_s - last.at_s)) > STEP_S:
        return (seen,)  # a clock was set: start over
    first = 0
    while first + 1 < len(before) and before[first + 1].report.clock_s <= clock_s - WINDOW_S:
        first += 1
    return (*before[first:], seen)


@dataclass(frozen=True)
class Change:
    """Increase of one process's counters."""

    seconds: float
    by: Mapping[Series, float]

    def rate(self, series: Series) -> float:
        """Increase per second."""
        return self.by.get(series, 0.0) / self.seconds


def change(seen: tuple[Seen, ...], over_s: float = WINDOW_S - REPORT_S / 2) -> Change | None:
    """Change since the newest report that is at least `over_s` older than the last one, or since
    the oldest; None if there is only one report. Values of gauges in it are meaningless."""
    if len(seen) < 2:
        return None
    last = seen[-1].report.clock_s
    first = len(seen) - 2
    while first > 0 and seen[first].report.clock_s > last - over_s:
        first -= 1
    by: dict[Series, float] = {}
    for older, newer in zip(seen[first:], seen[first + 1 :], strict=False):
        for series, value in newer.report.values.items():
            # a series that is new started at 0
            before = older.report.values.get(series, 0.0)
            # a counter that went down restarted at 0
            by[series] = by.get(series, 0.0) + (value - before if value >= before else value)
    return Change(last - seen[first].report.clock_s, by)


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """A quantile, as PromQL's `histogram_quantile` computes it. `buckets` has cumulative counts by
    upper bound, including infinity. The result is at most the last finite bound; None if all counts
    are 0."""
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
