"""Reach: which gateways do not serve a model although an engine of it has been ready for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from qwenfleet.cluster.labels import EngineState
from qwenfleet.deployments.registry.records import EngineRecord, Snapshot

PATIENCE_S: Final = 120.0
"""A gateway imports vLLM and builds its app in a quarter of this, on a busy machine."""


class Reach:
    """Compares gateways with engines, and reports each pair of a gateway and a model once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[tuple[str, str], float] = {}
        """By gateway and model: when both were first listed without being connected."""

    def judge(self, snapshot: Snapshot) -> list[str]:
        """Return a sentence for each gateway that has not reached an engine in time."""
        ready = {e.model: e for e in snapshot.engines if e.state == EngineState.READY}
        missing = {
            (gateway.id, model): engine
            for gateway in snapshot.gateways
            for model, engine in ready.items()
            if model not in gateway.models
        }
        now = self._clock()
        self._since = {pair: self._since.get(pair, now) for pair in missing}
        late = [pair for pair, since in self._since.items() if now - since > PATIENCE_S]
        for pair in late:
            self._since[pair] = float("inf")  # reported
        return [_sentence(gateway, missing[gateway, model]) for gateway, model in late]


def _sentence(gateway: str, engine: EngineRecord) -> str:
    return (
        f"gateway {gateway} does not serve {engine.model} yet, although engine {engine.id} is "
        f"ready: check that its node can connect to {engine.host} port {engine.port}"
    )
