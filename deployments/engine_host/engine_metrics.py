"""EngineMetrics: what an engine reports of itself, each time it announces itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from qwenfleet.cluster import metrics
from qwenfleet.deployments.registry.client import EngineRecord
from qwenfleet.deployments.registry.stages import Stage
from qwenfleet.deployments.telemetry.instruments import Instruments
from qwenfleet.deployments.wire.frames import RankLoad


class EngineMetrics:
    """Of one engine of one Serve deployment."""

    def __init__(self, fleet: str, deployment: str) -> None:
        self._instruments = Instruments(fleet)
        self._deployment = deployment
        self._orphans = 0

    def begin(self, model: str) -> None:
        """Make the series of what it counts."""
        self._instruments.begin(metrics.ORPHANS, model)

    def orphans(self, model: str, total: int) -> None:
        """`total` is since the engine's start."""
        self._instruments.add(metrics.ORPHANS, total - self._orphans, {"model": model})
        self._orphans = total

    def record(self, engine: EngineRecord, ranks: Sequence[RankLoad] = ()) -> None:
        labels = {"model": engine.model, "deployment": self._deployment, "engine": engine.id}
        for state in metrics.CLOSED["state"]:
            is_in_it = float(engine.state == state)
            self._instruments.set(metrics.ENGINE_STATE, is_in_it, labels | {"state": state})
        for metric, value in (
            (metrics.ENGINE_RUNNING, engine.running),
            (metrics.ENGINE_WAITING, engine.waiting),
            (metrics.ENGINE_KV_USAGE, engine.kv_usage),
            (metrics.ENGINE_PREFILL_RATE, sum(rank.prefill_tokens_per_s for rank in ranks)),
            (metrics.ENGINE_DECODE_STEP, max((r.decode_step_s for r in ranks), default=0.0)),
        ):
            self._instruments.set(metric, value, labels)
        for phase, seconds in phases(engine.stages).items():
            self._instruments.set(metrics.ENGINE_START_SECONDS, seconds, labels | {"phase": phase})
        self._instruments.alive("engine")

    def draining(self, engine: EngineRecord, for_s: float, grace_s: float) -> None:
        """It has been asked to leave so long ago, and has so long for it."""
        labels = {"model": engine.model, "deployment": self._deployment, "engine": engine.id}
        self._instruments.set(metrics.ENGINE_DRAIN_SECONDS, for_s, labels)
        self._instruments.set(metrics.ENGINE_DRAIN_GRACE, grace_s, labels)


def phases(stages: Sequence[Stage], clock: Callable[[], float] = time.time) -> dict[str, float]:
    """Seconds of each phase of a start, so far. A stage that waits for something says what for
    behind a colon, which is no label."""
    total: dict[str, float] = {}
    for stage in stages:
        phase = stage.name.partition(":")[0]
        seconds = clock() - stage.began_at if stage.seconds is None else stage.seconds
        total[phase] = total.get(phase, 0.0) + seconds
    return total
