"""What `qwenfleet serve` tells while a fleet comes up and runs, and when it gives up on it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.deployments.app import START_ATTEMPTS
from qwenfleet.deployments.registry.client import EngineRecord, Snapshot
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
        """`age_s` is how long ago the start was."""
        self._clock = clock
        self._started_at = clock() - age_s
        self._stream = stream or sys.stdout
        self.clock = StageClock()

    def begin(self, text: str) -> None:
        """Say it, and time it until the next one."""
        self.clock.begin(text)
        self.say(text)

    def say(self, text: str) -> None:
        self.print(f"[{self._clock() - self._started_at:6.1f}s] {text}")

    def print(self, text: str) -> None:
        """A reader that has left, as in `make serve | head`, must not keep the fleet from its
        end."""
        with contextlib.suppress(OSError):
            print(text, file=self._stream, flush=True)


class Progress:
    """Compares each snapshot of the registry with what it has told."""

    def __init__(
        self,
        config: FleetConfig,
        url: str,
        stages: Stages,
        *,
        wants_timings: bool = False,
        last_words: str = "Ctrl-C stops the fleet",
    ) -> None:
        self._config = config
        self._url = url
        self._stages = stages
        self._wants_timings = wants_timings
        self._last_words = last_words
        self._told: dict[str, str] = {}
        self._is_announced = False
        self.is_complete = False
        """Whether all that is wanted was there at the last look."""

    def tell(self, snapshot: Snapshot) -> None:
        """Say what is new. Raises EngineStartError for a model that will not come."""
        self._give_up_on(snapshot)
        self._tell_engines(snapshot)
        answered = self._answered_everywhere(snapshot)
        if answered and not self._is_announced:
            self._is_announced = True
            self._stages.clock.end()
            self._stages.say(f"ready: {self._url}")
            self._stages.print(EXAMPLE.format(url=self._url, model=answered[0]))
        ready = sum(engine.state == "ready" for engine in snapshot.engines)
        wanted = self._config.num_engines
        is_complete = ready >= wanted and len(answered) == len(self._config.models)
        if is_complete and not self.is_complete:
            self._stages.say(f"all {ready} engines ready; {self._last_words}")
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
        """The models that whichever gateway a request reaches can answer for."""
        gateways = [set(gateway.models) for gateway in snapshot.gateways]
        if len(gateways) < self._config.gateway.replicas:
            return []
        return [m.id for m in self._config.models if all(m.id in models for models in gateways)]

    def _tell_engines(self, snapshot: Snapshot) -> None:
        models = {engine.id: engine.model for engine in snapshot.engines}
        now = {
            engine.id: _stage(engine) if engine.state == "starting" else engine.state
            for engine in snapshot.engines
            if engine.is_loading or engine.state != "starting"
        }
        for engine, word in now.items():
            if self._told.get(engine) != word:
                self._stages.say(f"engine {engine} of {models[engine]}: {word}")
        for engine in self._told.keys() - now.keys():
            self._stages.say(f"engine {engine}: gone")
        self._told = now

    def _give_up_on(self, snapshot: Snapshot) -> None:
        """Some failures are for ever, and so are as many as Serve tries; a ready engine
        forgives."""
        served = {engine.model for engine in snapshot.engines if engine.state == "ready"}
        for failure in snapshot.failures:
            times = sum(other.model == failure.model for other in snapshot.failures)
            is_hopeless = times >= START_ATTEMPTS and failure.model not in served
            if failure.is_final or is_hopeless:
                raise EngineStartError(failure.model, failure.reason, failure.log_file)


def _stage(engine: EngineRecord) -> str:
    """What it is doing; the registry hears of a turn that it has given with the next news only."""
    is_under_way = len(engine.stages) > 1
    return engine.stages[-1].name if is_under_way else "loading"
