"""Tests the report of gateways that cannot connect to an engine."""

from __future__ import annotations

from qwenfleet.deployments.operations.reach import PATIENCE_S, Reach
from qwenfleet.deployments.registry.records import EngineRecord, GatewayRecord, Snapshot


def snapshot(*models: str, state: str = "ready") -> Snapshot:
    """One engine, and a gateway that serves the given models."""
    engine = EngineRecord("e1", "coder", "node-1", 1, state, host="10.0.0.1", port=4000)
    gateway = GatewayRecord("gw-1", "node-2", 2, bool(models), models)
    return Snapshot(engines=(engine,), gateways=(gateway,), failures=())


def test_gateway_that_does_not_connect_in_time_is_reported_once() -> None:
    now = 0.0
    reach = Reach(clock=lambda: now)
    assert reach.judge(snapshot()) == []
    now = PATIENCE_S + 1
    (sentence,) = reach.judge(snapshot())
    assert "gateway gw-1 does not serve coder yet, although engine e1 is ready" in sentence
    assert "connect to 10.0.0.1 port 4000" in sentence
    now *= 3
    assert reach.judge(snapshot()) == []


def test_time_counts_from_when_the_engine_is_ready_and_the_gateway_is_not_connected() -> None:
    now = 0.0
    reach = Reach(clock=lambda: now)
    for state, models in (("starting", ()), ("ready", ("coder",)), ("ready", ())):
        assert reach.judge(snapshot(*models, state=state)) == []
        now += PATIENCE_S + 1
    assert len(reach.judge(snapshot())) == 1
