"""Case: the figures of one load on one server, over one or several runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from qwenfleet.loadtest.closed_loop import ClosedLoop, Sample

FIGURES: Final = (
    "requests_per_s",
    "tokens_per_s",
    "ttft_p50_ms",
    "latency_p50_ms",
    "latency_p99_ms",
    "cpu_ms_per_request",
)
"""Fields of a Case that are medians over several runs."""


@dataclass(frozen=True)
class Case:
    """One entry in the JSON of a benchmark. Latencies cover requests without an error."""

    server: str
    stream: bool
    max_tokens: int
    concurrency: int
    requests_per_s: float
    tokens_per_s: float
    ttft_p50_ms: float | None
    """Without streaming, the time to the whole body; None if every request failed."""
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    cpu_ms_per_request: float
    errors: int

    @property
    def load(self) -> ClosedLoop:
        return ClosedLoop(self.stream, self.max_tokens, self.concurrency)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measured(server: str, load: ClosedLoop, sample: Sample) -> Case:
    """Compute the figures of one run."""
    good = [answer for answer in sample.answers if not answer.error]
    latencies = [answer.latency_s for answer in good]
    return Case(
        server=server,
        stream=load.is_stream,
        max_tokens=load.max_tokens,
        concurrency=load.concurrency,
        requests_per_s=len(good) / sample.elapsed_s,
        tokens_per_s=sum(answer.tokens for answer in good) / sample.elapsed_s,
        ttft_p50_ms=percentile_ms([answer.ttft_s for answer in good], 0.5),
        latency_p50_ms=percentile_ms(latencies, 0.5),
        latency_p99_ms=percentile_ms(latencies, 0.99),
        cpu_ms_per_request=1000 * sample.cpu_s / max(1, len(sample.answers)),
        errors=len(sample.answers) - len(good),
    )


def percentile_ms(values_s: Sequence[float], share: float) -> float | None:
    """Return the percentile `share` by nearest rank, in milliseconds."""
    if not values_s:
        return None
    rank = max(1, -int(-share * len(values_s) // 1))
    return 1000 * sorted(values_s)[rank - 1]


def median(runs: Sequence[Case]) -> Case:
    """Return the median of each figure over runs of one load on one server, and the sum of
    errors."""
    values: dict[str, Any] = {}
    for figure in FIGURES:
        known = [value for run in runs if (value := getattr(run, figure)) is not None]
        values[figure] = statistics.median(known) if known else None
    return replace(runs[0], **values, errors=sum(run.errors for run in runs))
