"""Reports of a fleet's processes, parsed from the text that Ray's metrics agent exports."""

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
"""Exported name, and the labels that cluster/metrics.py defines, without FLEET and Ray's own."""

PREFIX: Final = f"{EXPORTED_PREFIX}qwenfleet_"
PROCESS: Final = "WorkerId"
"""Ray's label for the process; a restarted process has another value."""
OWN: Final = frozenset({"le"}.union(*(metric.labels for metric in METRICS.values())))
"""Labels that qwenfleet sets. Ray adds `Version`, `Component` and others to every series."""


@dataclass(frozen=True)
class ProcessReport:
    """One process's metrics at one moment of its own clock."""

    process: str
    node: str
    role: str
    fleet: str
    clock_s: float
    """Seconds since the epoch."""
    values: Mapping[Series, float]


def reports(text: str, url: str) -> tuple[ProcessReport, ...]:
    """Reports of the processes that are alive. Ray exports a dead process's counters forever but
    its gauges for 20 s only, and the clock is a gauge. Raises MetricsError if `text`, read from
    `url`, cannot be parsed."""
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
    """Our samples only: the parser, written in Python, takes 8 ms for them and 100 ms for all of
    Ray's. Split at "\\n" only, because a label may contain any other line separator."""
    lines = [line for line in text.split("\n") if line.startswith(PREFIX)]
    try:
        for family in text_string_to_metric_families("\n".join(lines)):
            yield from family.samples
    except ValueError as error:
        raise MetricsError(
            url,
            f"answers with a line that is not in Prometheus' format ({error})"[:300],
            "Use the address that `qwenfleet status` prints after 'metrics at'.",
        ) from error
