"""Tally: counts of one model's requests and tokens, summed until the next report.

A Ray metric takes 2 us and more per value: at one value per token, that was 6 % of a gateway's CPU.
Ray's own histograms also sum the middles of their buckets. So histograms are kept here and reported
as totals.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from qwenfleet.cluster import metrics
from qwenfleet.cluster.metrics import Metric

HISTOGRAMS = (
    metrics.REQUEST_SECONDS,
    metrics.QUEUE_SECONDS,
    metrics.TTFT_SECONDS,
    metrics.ITL_SECONDS,
)


class Histogram:
    """Counts of values by inclusive upper bound; the last bucket holds larger values."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.has_news = True
        """Whether it changed since the last report."""
        self.shown_at = -math.inf
        """Time of the last report, on the monotonic clock."""

    def observe(self, value: float) -> None:
        self.has_news = True
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    @property
    def buckets(self) -> Iterator[tuple[str, int]]:
        """Prometheus' `le` bounds with the cumulative counts."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return zip(bounds, accumulate(self._counts), strict=True)


class Tally:
    """The sums of one model."""

    def __init__(self) -> None:
        self.histograms: dict[Metric, Histogram] = {
            metric: Histogram(metric.buckets) for metric in HISTOGRAMS
        }
        self.queued, self.ttft, self.gaps = (
            self.histograms[metric]
            for metric in (metrics.QUEUE_SECONDS, metrics.TTFT_SECONDS, metrics.ITL_SECONDS)
        )
        self.resume_gaps = {
            loss: Histogram(metrics.RESUME_GAP_SECONDS.buckets) for loss in metrics.CLOSED["loss"]
        }
        """By the reason why a request left its engine."""
        self.requests = self.histograms[metrics.REQUEST_SECONDS]
        self.clear()

    def clear(self) -> None:
        """Reset the counts; histograms keep their totals."""
        self.prompt = self.cached = self.output = 0
        """Tokens."""
        self.judged = {slo: [0, 0] for slo in metrics.CLOSED["slo"]}
        """Bad and good events of each objective."""
