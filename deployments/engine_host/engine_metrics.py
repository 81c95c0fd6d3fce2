"""EngineMetrics: the metrics that an engine reports with each announcement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from qwenfleet.cluster import metrics
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.registry.stages import Stage
from qwenfleet.deployments.telemetry.instruments import Instruments
from qwenfleet.deployments.wire.frames import RankLoad


class EngineMetrics:
    """The metrics of one engine of one Serve deployment."""

    def __init__(self, fleet: str, deployment: str) -> None:
        self._instruments = Instruments(fleet)
        self._deployment = deployment
        self._orphans = 0

    def begin(self, model: str) -> None:
        """Create the counters at zero."""
        self._instruments.begin(metrics.ORPHANS, model)

    def orphans(self, model: str, total: int) -> None:
        """Count aborted orphans; `total` is since the engine's start."""
        self._instruments.add(metrics.ORPHANS, total - self._orphans, {"model": model})
        self._orphans = total

    def record(self, engine: EngineRecord, ranks: Sequence[RankLoad] = ()) -> None:
        labels = {"model": engine.model, "deployment": self._deployment, "engine": engine.id}
        for state in metrics.CLOSED["state"]:
            is_current = float(engine.state == state)
            self._instruments.set(metrics.ENGINE_STATE, is_current, labels | {"state": state})
        for metric, value in (
            (metrics.ENGINE_RUNNING, engine.running),
            (metrics.ENGINE_WAITING, engine.waiting),
            (metrics.ENGINE_KV_USAGE, engine.kv_usage),
            (metrics.ENGINE_PREFILL_RATE, sum(rank.prefill_tokens_per_s for rank in ranks)),
            (metrics.ENGINE_DECODE_STEP, max((r.decode_step_s for r in ranks), default=0.0)),
            (metrics.ENGINE_REPLACES_DRAINED, float(bool(engine.replaces))),
        ):
            self._instruments.set(metric, value, labels)
        for phase, seconds in phases(engine.stages).items():
            self._instruments.set(metrics.ENGINE_START_SECONDS, seconds, labels | {"phase": phase})
        self._instruments.alive("engine")

    def draining(self, engine: EngineRecord, for_s: float, grace_s: float) -> None:
        """Report how long the engine has been draining and how long it may take, in seconds."""
        labels = {"model": engine.model, "deployment": self._deployment, "engine": engine.id}
        self._instruments.set(metrics.ENGINE_DRAIN_SECONDS, for_s, labels)
        self._instruments.set(metrics.ENGINE_DRAIN_GRACE, grace_s, labels)


def phases(stages: Sequence[Stage], clock: Callable[[], float] = time.time) -> dict[str, float]:
    """Seconds spent so far in each phase of a start."""
    total: dict[str, float] = {}
    for stage in stages:
        seconds = clock() - stage.began_at if stage.seconds is None else stage.seconds
        total[stage.name] = total.get(stage.name, 0.0) + seconds
    return total
