"""Tally: what is counted with every request or token of one model, until it is reported.

A Ray metric takes 2 us and more for each value, which at one value a token was 6 % of a gateway's
CPU; and Ray's own histograms add up the middles of their buckets. So histograms are kept here, and
reported as they stand.
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
    """Counts of values by upper bounds, which a value may equal; one more bucket takes the rest."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.has_news = True
        """Since it was shown."""
        self.shown_at = -math.inf
        """On the monotonic clock."""

    def observe(self, value: float) -> None:
        self.has_news = True
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    @property
    def buckets(self) -> Iterator[tuple[str, int]]:
        """Prometheus' `le`, and how many values were no greater."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return zip(bounds, accumulate(self._counts), strict=True)


class Tally:
    """Of one model."""

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
        """By why a request left its engine."""
        self.requests = self.histograms[metrics.REQUEST_SECONDS]
        self.clear()

    def clear(self) -> None:
        """What follows is of the time since the last report."""
        self.prompt = self.cached = self.output = 0
        """Tokens."""
        self.judged = {slo: [0, 0] for slo in metrics.CLOSED["slo"]}
        """Bad and good events of each objective."""
