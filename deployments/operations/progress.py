"""Progress lines of `qwenfleet serve` while a fleet starts and runs, and when it gives up."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.labels import EngineState
from qwenfleet.deployments.operations.failures import Deployed, Failures
from qwenfleet.deployments.operations.readiness import Readiness
from qwenfleet.deployments.registry.actor import LAPSE_S
from qwenfleet.deployments.registry.records import EngineRecord, GatewayRecord, Snapshot
from qwenfleet.deployments.registry.stages import Stage, StageClock, table

FAILED_READINGS: Final = 2
EXAMPLE: Final = """
  curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '{{"model": "{model}", \
"temperature": 0, "max_tokens": 200, "messages": [{{"role": "user", "content": \
"Write a Python function that reverses a string"}}]}}'
"""


class Stages:
    """Progress lines with the seconds since the start."""

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        age_s: float = 0.0,
    ) -> None:
        """`age_s` is the time since the start."""
        self._clock = clock
        self._started_at = clock() - age_s
        self._stream = stream or sys.stdout
        self.clock = StageClock()

    def begin(self, text: str) -> None:
        """Print the stage, and time it until the next one begins."""
        self.clock.begin(text)
        self.say(text)

    def say(self, text: str) -> None:
        self.print(f"[{self._clock() - self._started_at:6.1f}s] {text}")

    def print(self, text: str) -> None:
        """Print, even to a closed pipe: `make serve | head` must not keep the fleet from
        stopping."""
        with contextlib.suppress(OSError):
            print(text, file=self._stream, flush=True)


class Progress:
    """Compares each reading with what it has reported."""

    def __init__(
        self,
        config: FleetConfig,
        url: str,
        stages: Stages,
        *,
        wants_timings: bool = False,
        hint: str = "Ctrl-C stops the fleet",
    ) -> None:
        self._config = config
        self._url = url
        self._stages = stages
        self._wants_timings = wants_timings
        self._hint = hint
        self._failures = Failures(config)
        self._engines: dict[str, str] = {}
        """What was last printed about each engine."""
        self._gateways: dict[str, str] = {}
        self._is_announced = False
        self._unanswered = 0
        """How many readings in a row found that requests fail."""
        self.is_complete = False
        """Whether the last reading had everything that the configuration asks for."""

    def report(
        self,
        snapshot: Snapshot | None,
        readiness: Readiness | None = None,
        deployments: Sequence[Deployed] = (),
    ) -> None:
        """Print what changed. `snapshot` is None while the registry does not answer, `readiness` if
        nobody asked.

        Raises EngineStartError or GatewayStartError for a start that cannot succeed; a fleet that
        has been ready goes on with what it has.
        """
        news = self._failures.judge(snapshot, deployments, has_served=self._is_announced)
        for sentence in news:
            self._stages.say(sentence)
        if readiness is not None:
            self._report_readiness(readiness)
        if snapshot is not None:
            self._report_snapshot(snapshot, readiness is None or readiness.is_ready)

    def _report_snapshot(self, snapshot: Snapshot, is_answered: bool) -> None:
        self._report_engines(snapshot)
        self._report_gateways(snapshot)
        answered = self._answered_everywhere(snapshot) if is_answered else []
        if answered and not self._is_announced:
            self._is_announced = True
            self._stages.clock.end()
            self._stages.say(f"ready: {self._url}")
            self._stages.print(EXAMPLE.format(url=self._url, model=answered[0]))
        ready = sum(engine.state == EngineState.READY for engine in snapshot.engines)
        wanted = self._config.num_engines
        is_complete = ready >= wanted and len(answered) == len(self._config.models)
        if is_complete and not self.is_complete:
            self._stages.say(f"all {ready} engines ready; {self._hint}")
            if self._wants_timings:
                self._wants_timings = False
                self._stages.print(table(self._timings(snapshot)))
        self.is_complete = is_complete

    def _report_readiness(self, readiness: Readiness) -> None:
        """Print that requests fail, and that they are answered again. One reading may meet HAProxy
        between two configurations."""
        if readiness.is_ready:
            if self._unanswered >= FAILED_READINGS:
                self._stages.say("requests are answered again")
            self._unanswered = 0
        elif self._is_announced:
            self._unanswered += 1
            self.is_complete = False
            if self._unanswered == FAILED_READINGS:
                self._stages.say(f"requests fail: {self._url} {_failing(readiness)}")

    def _timings(self, snapshot: Snapshot) -> list[tuple[str, tuple[Stage, ...]]]:
        return [
            ("serve", self._stages.clock.stages),
            *((f"gateway {gateway.id}", gateway.stages) for gateway in snapshot.gateways),
            *((f"engine {engine.id}", engine.stages) for engine in snapshot.engines),
        ]

    def _answered_everywhere(self, snapshot: Snapshot) -> list[str]:
        """Return the models that every gateway can serve."""
        gateways = [set(gateway.models) for gateway in snapshot.gateways]
        if len(gateways) < self._config.gateway.replicas:
            return []
        return [m.id for m in self._config.models if all(m.id in models for models in gateways)]

    def _report_engines(self, snapshot: Snapshot) -> None:
        models = {engine.id: engine.model for engine in snapshot.engines}
        now = {
            engine.id: _stage(engine) if engine.state == EngineState.STARTING else engine.state
            for engine in snapshot.engines
            if engine.is_loading or engine.state != EngineState.STARTING
        }
        for engine, word in now.items():
            if self._engines.get(engine) != word:
                self._stages.say(f"engine {engine} of {models[engine]}: {word}")
        self._engines = now | self._report_departed("engine", self._engines, now, snapshot)

    def _report_gateways(self, snapshot: Snapshot) -> None:
        """Print the gateways' states, from the moment when all of them have once been ready."""
        now = {gateway.id: _state(gateway) for gateway in snapshot.gateways}
        if self._is_announced:
            for gateway, word in now.items():
                if self._gateways.get(gateway) != word:
                    self._stages.say(f"gateway {gateway}: {word}")
        self._gateways = now | self._report_departed("gateway", self._gateways, now, snapshot)

    def _report_departed(
        self, kind: str, known: dict[str, str], now: dict[str, str], snapshot: Snapshot
    ) -> dict[str, str]:
        """Print who left and why; returns those that a young registry may not have heard of yet."""
        departures = {one.id: one for one in snapshot.departures}
        is_young = snapshot.up_s is not None and snapshot.up_s < LAPSE_S
        unheard = {}
        for id in known.keys() - now.keys():
            departure = departures.get(id)
            if departure is None and is_young:
                unheard[id] = known[id]
                continue
            of_model = f" of {departure.model}" if departure and departure.model else ""
            why = f": {departure.reason}" if departure and departure.reason else ""
            self._stages.say(f"{kind} {id}{of_model}: stopped{why}; Serve starts another")
        return unheard


def _failing(readiness: Readiness) -> str:
    return str(readiness) if readiness.status == 0 else f"answers {readiness}"


def _state(gateway: GatewayRecord) -> str:
    """Return a gateway's state; one of older code does not report it."""
    return gateway.state or ("ready" if gateway.is_ready else "starting")


def _stage(engine: EngineRecord) -> str:
    """Return what the engine is doing. Between its turn and its next announcement, the registry
    knows only that it may load."""
    has_begun = len(engine.stages) > 1
    stage = str(engine.stages[-1]) if has_begun else "loading"
    if engine.replaces:
        return f"{stage}, in place of {engine.replaces}, which was drained"
    return stage
