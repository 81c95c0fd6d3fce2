"""Tests the deadlines of an engine's drain, without Serve, Ray or a core."""

from __future__ import annotations

import asyncio
import math
import os
from types import SimpleNamespace
from typing import Any

import pytest

from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments import engine as module
from qwenfleet.deployments.engine_host.core import CoreDead
from qwenfleet.deployments.registry.records import DrainOrder
from qwenfleet.deployments.registry.stages import StageClock
from qwenfleet.deployments.telemetry.tracing import NoTracing
from qwenfleet.deployments.wire.frames import EngineDescription

OPERATOR = DrainOrder("its node is drained by an operator", 600.0)
SPOT = DrainOrder("node n1 has the taint spot", 25.0)


class Host:
    """Stands in for EngineHost and records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, float]] = []
        self.is_drained = asyncio.Event()

    async def drain(self, reason: str, deadline_s: float) -> None:
        self.calls.append(("drain", reason, round(deadline_s)))
        await self.is_drained.wait()

    def hasten(self, reason: str, deadline_s: float) -> None:
        self.calls.append(("hasten", reason, round(deadline_s)))


class Registry:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.replaced: list[str] = []
        """Reasons of those that Serve replaces after a drain."""

    async def withdraw(self, id: str, reason: str = "", *, is_replaced: bool = False) -> None:
        assert id == "e1"
        self.reasons.append(reason)
        if is_replaced:
            self.replaced.append(reason)


class Exit(Exception):
    """Raised instead of ending the process."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def leave(status: int) -> None:
        raise Exit(status)

    monkeypatch.setattr(os, "_exit", leave)
    deployment: Any = module.Engine
    plain = deployment.func_or_class
    # Engine.__del__ is a coroutine, which only Serve awaits.
    engine: Any = object.__new__(type("Engine", (plain,), {"__del__": lambda _: None}))
    engine.__dict__ |= {
        "_id": "e1",
        "_state": "ready",
        "_reason": "",
        "_drain_until": math.inf,
        "_host": None,
        "_core": None,
        "_tracing": NoTracing(),
        "_registry": Registry(),
        "_tasks": [],
    }
    return engine


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_only_an_earlier_deadline_hastens_a_drain(
    engine: Any,
) -> None:
    host = engine._host = Host()
    engine._leave(OPERATOR)
    await turn()
    for order in (OPERATOR, SPOT, SPOT, OPERATOR):
        engine._leave(order)
    await turn()
    assert host.calls == [("drain", OPERATOR.reason, 600), ("hasten", SPOT.reason, 25)]
    assert (engine._state, engine._reason) == ("draining", SPOT.reason)
    host.is_drained.set()
    with pytest.raises(Exit):
        await engine._tasks[0]
    assert engine._registry.replaced == [SPOT.reason], "an ordered drain is not a failure"


async def test_earlier_of_two_simultaneous_deadlines_wins(engine: Any) -> None:
    host = engine._host = Host()
    engine._leave(OPERATOR)
    engine._leave(SPOT)
    await turn()
    assert ("drain", SPOT.reason, 25) in host.calls
    assert len(engine._tasks) == 1
    engine._tasks[0].cancel()


def test_engine_announces_its_limits_while_it_loads(engine: Any) -> None:
    draft, final = EngineDescription(8192), EngineDescription(4096)
    engine.__dict__ |= {
        "_model": ModelConfig(id="coder"),
        "_pool": "",
        "_node": "n1",
        "_nodes": ["n1"],
        "_address": ("", 0),
        "_secret": "s",
        "_description": None,
        "_may_load": asyncio.Event(),
        "_replaces": "",
        "_stages": StageClock(),
        "_core": None,
    }
    assert engine._record().description is None
    engine._core = SimpleNamespace(draft=draft)
    assert engine._record().description == draft
    engine._description = final
    assert engine._record().description == final


async def test_dead_core_is_the_reason_that_the_fleet_hears(engine: Any) -> None:
    class Died:
        async def run(self) -> None:
            raise CoreDead("signal 9")

    engine._host = Died()
    announcing = asyncio.create_task(asyncio.Event().wait())
    engine._tasks = [announcing]
    with pytest.raises(Exit):
        await engine._run()
    assert engine._registry.reasons == ["its core died: signal 9"]
    assert announcing.cancelled(), "an announcement would list the engine again"
