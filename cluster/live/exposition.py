"""What a fleet's processes report of themselves, from the text that Ray's metrics agent exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from qwenfleet.cluster.errors import MetricsError
from qwenfleet.cluster.metrics import CLOCK, EXPORTED_PREFIX, FLEET, METRICS

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Sorted by name."""
Series: TypeAlias = tuple[str, Labels]
"""The exported name, and the labels that cluster/metrics.py gives it: neither FLEET nor Ray's."""

PREFIX: Final = f"{EXPORTED_PREFIX}qwenfleet_"
PROCESS: Final = "WorkerId"
"""Ray's own label: a process that is started again has another."""
OWN: Final = frozenset({"le"}.union(*(metric.labels for metric in METRICS.values())))
"""Labels that are not Ray's, which puts `Version`, `Component` and others on everything."""


@dataclass(frozen=True)
class ProcessReport:
    """One process's metrics, as of one moment by its own clock."""

    process: str
    node: str
    role: str
    fleet: str
    clock_s: float
    """Seconds since the epoch."""
    values: Mapping[Series, float]


def reports(text: str, url: str) -> tuple[ProcessReport, ...]:
    """Of every process that lives: Ray exports a dead one's counters for ever, but its gauges for
    20 s, and the clock is a gauge. Raises MetricsError when `text`, which came from `url`, cannot
    be parsed."""
    values: dict[tuple[str, str], dict[Series, float]] = {}
    clocks: dict[tuple[str, str], Sample] = {}
    for sample in _samples(text, url):
        key = (sample.labels.get(PROCESS, ""), sample.labels.get(FLEET, ""))
        if sample.name == CLOCK.exported:
            clocks[key] = sample
        own = tuple(sorted((k, v) for k, v in sample.labels.items() if k in OWN))
        values.setdefault(key, {})[sample.name, own] = sample.value
    return tuple(
        ProcessReport(
            process=key[0],
            node=clock.labels.get("NodeAddress", ""),
            role=clock.labels.get("role", ""),
            fleet=key[1],
            clock_s=clock.value,
            values=values[key],
        )
        for key, clock in clocks.items()
    )


def _samples(text: str, url: str) -> Iterator[Sample]:
    """Only ours, which the parser, written in Python, takes 8 ms for; all of Ray's took 100 ms.
    A label may hold any character but a plain newline, so lines end nowhere else."""
    lines = [line for line in text.split("\n") if line.startswith(PREFIX)]
    try:
        for family in text_string_to_metric_families("\n".join(lines)):
            yield from family.samples
    except ValueError as error:
        raise MetricsError(
            url,
            f"answers with a line that is not Prometheus' text format ({error})"[:300],
            "Give the address that `qwenfleet status` prints behind 'metrics at'.",
        ) from error
