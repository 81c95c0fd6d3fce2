"""Progress lines of `qwenfleet serve` while a fleet starts and runs, and when it gives up."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.cluster.labels import EngineState
from qwenfleet.deployments.app import START_ATTEMPTS
from qwenfleet.deployments.registry.records import EngineRecord, Snapshot
from qwenfleet.deployments.registry.stages import Stage, StageClock, table

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
    """Compares each registry snapshot with what it has reported."""

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
        self._reported: dict[str, str] = {}
        self._is_announced = False
        self.is_complete = False
        """Whether the last snapshot had everything that the configuration asks for."""

    def report(self, snapshot: Snapshot) -> None:
        """Print what changed. Raises EngineStartError for a model that cannot start."""
        self._give_up_on(snapshot)
        self._report_engines(snapshot)
        answered = self._answered_everywhere(snapshot)
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
            if self._reported.get(engine) != word:
                self._stages.say(f"engine {engine} of {models[engine]}: {word}")
        for engine in self._reported.keys() - now.keys():
            self._stages.say(f"engine {engine}: stopped")
        self._reported = now

    def _give_up_on(self, snapshot: Snapshot) -> None:
        """Raise EngineStartError after a final failure, or after as many failures as Serve makes
        attempts if the model has no ready engine."""
        served = {engine.model for engine in snapshot.engines if engine.state == EngineState.READY}
        for failure in snapshot.failures:
            times = sum(other.model == failure.model for other in snapshot.failures)
            is_hopeless = times >= START_ATTEMPTS and failure.model not in served
            if failure.is_final or is_hopeless:
                raise EngineStartError(failure.model, failure.reason, failure.log_file)


def _stage(engine: EngineRecord) -> str:
    """Return what the engine is doing. Between its turn and its next announcement, the registry
    knows only that it may load."""
    has_begun = len(engine.stages) > 1
    return str(engine.stages[-1]) if has_begun else "loading"
