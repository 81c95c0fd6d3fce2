"""Engines of one model as a test sets them."""

from __future__ import annotations

from dataclasses import dataclass

from qwenfleet.deployments.wire.frames import EngineDescription


@dataclass
class FakeEngines:
    """Stands in for a model's engines, all of them usable."""

    num_engines: int = 1
    num_moving: int = 0
    description: EngineDescription | None = None
    num_ended: int = 0

    def end_waiting(self) -> None:
        self.num_ended += 1
