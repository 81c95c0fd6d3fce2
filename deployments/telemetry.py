"""What gateways and engines tell of themselves: metrics as Ray metrics, and traces if wanted."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, get_args

from ray.util import metrics as ray_metrics

from qwenfleet.cluster import metrics
from qwenfleet.cluster.config import FleetConfig
from qwenfleet.cluster.metrics import Metric
from qwenfleet.deployments.registry import EngineRecord, EngineState

if TYPE_CHECKING:
    from qwenfleet.deployments.tracing import Tracing

NO_MODEL: Final = "none"
"""The `model` of a request that named none that is served: clients' strings are no labels."""


@cache
def _instrument(metric: Metric) -> Any:
    """Ray wants one object per name and process."""
    match metric.kind:
        case "counter":
            return ray_metrics.Counter(metric.name, metric.help, tag_keys=metric.labels)
        case "gauge":
            return ray_metrics.Gauge(metric.name, metric.help, tag_keys=metric.labels)
        case "histogram":
            return ray_metrics.Histogram(
                metric.name,
                metric.help,
                boundaries=list(metric.buckets),
                tag_keys=metric.labels,
            )


class GatewayMetrics:
    """What a gateway counts. Durations are seconds."""

    def request_ended(self, model: str, outcome: str) -> None:
        _instrument(metrics.REQUESTS).inc(1, {"model": model, "outcome": outcome})

    def completed(self, model: str, duration_s: float) -> None:
        _instrument(metrics.REQUEST_SECONDS).observe(duration_s, {"model": model})

    def first_token(self, model: str, ttft_s: float) -> None:
        _instrument(metrics.TTFT_SECONDS).observe(ttft_s, {"model": model})

    def next_token(self, model: str, gap_s: float) -> None:
        _instrument(metrics.ITL_SECONDS).observe(gap_s, {"model": model})

    def tokens(self, model: str, *, prompt: int, cached: int, output: int) -> None:
        tags = {"model": model}
        for metric, count in (
            (metrics.PROMPT_TOKENS, prompt),
            (metrics.CACHED_TOKENS, cached),
            (metrics.OUTPUT_TOKENS, output),
        ):
            if count:
                _instrument(metric).inc(count, tags)

    def engine_lost(self, model: str, loss: str) -> None:
        _instrument(metrics.ENGINE_LOSSES).inc(1, {"model": model, "loss": loss})

    def resumed(self, model: str, loss: str, gap_s: float) -> None:
        tags = {"model": model, "loss": loss}
        _instrument(metrics.RESUMES).inc(1, tags)
        _instrument(metrics.RESUME_GAP_SECONDS).observe(gap_s, tags)

    def moving(self, model: str, requests: int) -> None:
        _instrument(metrics.MOVING_REQUESTS).set(requests, {"model": model})


class EngineMetrics:
    """What an engine reports of itself."""

    def __init__(self) -> None:
        self._orphans = 0

    def orphans(self, model: str, total: int) -> None:
        """`total` is since the engine's start."""
        if total > self._orphans:
            _instrument(metrics.ORPHANS).inc(total - self._orphans, {"model": model})
            self._orphans = total

    def record(self, engine: EngineRecord) -> None:
        tags = {"model": engine.model, "engine": engine.id}
        for state in get_args(EngineState):
            _instrument(metrics.ENGINE_STATE).set(
                float(engine.state == state), tags | {"state": state}
            )
        _instrument(metrics.ENGINE_RUNNING).set(engine.running, tags)
        _instrument(metrics.ENGINE_WAITING).set(engine.waiting, tags)
        _instrument(metrics.ENGINE_KV_USAGE).set(engine.kv_usage, tags)


def tracing_of(fleet: FleetConfig, *, service: str, instance: str) -> Tracing | None:
    """This process's tracing. OpenTelemetry is imported only when it is configured."""
    if fleet.tracing is None:
        return None
    from qwenfleet.deployments.tracing import Tracing

    return Tracing(fleet.tracing, fleet=fleet.name, service=service, instance=instance)
