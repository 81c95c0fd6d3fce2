"""The registry's state, with a clock of the test's own and no Ray."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwenfleet.deployments.registry import (
    LAPSE_S,
    EngineRecord,
    GatewayRecord,
    Registry,
    StartFailure,
)

FEW_CORES = 2


def engine(name: str = "engine-1", node: str = "node-1", **fields: Any) -> EngineRecord:
    return EngineRecord(
        **{
            "id": name,
            "model": "coder",
            "node": node,
            "pid": 7,
            "state": "starting",
            **fields,
        }
    )


def gateway(name: str = "gw-1") -> GatewayRecord:
    return GatewayRecord(name, "node-1", 8, is_ready=False)


@pytest.fixture
def registry(clock: Any) -> Registry:
    return Registry(clock)


def test_who_announces_is_listed(registry: Registry) -> None:
    ready = engine(state="ready", host="10.0.0.1", port=99, secret="s")
    registry.announce_engine(ready, FEW_CORES)
    registry.announce_gateway(gateway())
    snapshot = registry.snapshot()
    assert snapshot.engines == (ready,)
    assert snapshot.gateways == (gateway(),)
    assert snapshot.failures == ()


def test_the_last_word_of_an_engine_counts(registry: Registry) -> None:
    registry.announce_engine(engine(state="ready"), FEW_CORES)
    registry.announce_engine(engine(state="draining"), FEW_CORES)
    assert [record.state for record in registry.snapshot().engines] == ["draining"]


def test_who_is_silent_for_five_seconds_is_no_longer_listed(registry: Registry, clock: Any) -> None:
    assert LAPSE_S == 5.0
    registry.announce_engine(engine("early"), FEW_CORES)
    registry.announce_gateway(gateway("early"))
    clock.advance(3)
    registry.announce_engine(engine("late"), FEW_CORES)
    registry.announce_gateway(gateway("late"))
    clock.advance(1.9)
    assert len(registry.snapshot().engines) == len(registry.snapshot().gateways) == 2
    clock.advance(0.1)
    snapshot = registry.snapshot()
    assert [record.id for record in snapshot.engines] == ["late"]
    assert [record.id for record in snapshot.gateways] == ["late"]


def test_with_few_cores_one_engine_of_a_node_loads_at_a_time(registry: Registry) -> None:
    assert registry.announce_engine(engine("first"), FEW_CORES)
    assert not registry.announce_engine(engine("second"), FEW_CORES)
    assert registry.announce_engine(engine("elsewhere", node="node-2"), FEW_CORES)
    loading = {record.id for record in registry.snapshot().engines if record.is_loading}
    assert loading == {"first", "elsewhere"}


def test_the_loader_keeps_its_place_until_it_is_ready(registry: Registry) -> None:
    registry.announce_engine(engine("first"), FEW_CORES)
    assert not registry.announce_engine(engine("second"), FEW_CORES)
    assert registry.announce_engine(engine("first", is_loading=True), FEW_CORES)
    assert not registry.announce_engine(engine("second"), FEW_CORES)
    registry.announce_engine(engine("first", state="ready"), FEW_CORES)
    assert registry.announce_engine(engine("second"), FEW_CORES)


def test_with_many_cores_several_engines_load_at_a_time(registry: Registry) -> None:
    answers = [registry.announce_engine(engine(f"engine-{n}"), 12) for n in range(5)]
    assert answers == [True, True, True, False, False]


def test_a_registry_that_starts_empty_learns_who_loads(registry: Registry) -> None:
    registry.announce_engine(engine("first", is_loading=True), FEW_CORES)
    assert not registry.announce_engine(engine("second"), FEW_CORES)


@pytest.mark.parametrize("ending", ["withdraw", "failure", "silence"])
def test_a_loader_that_goes_gives_its_place_to_the_next(
    registry: Registry, clock: Any, ending: str
) -> None:
    registry.announce_engine(engine("first"), FEW_CORES)
    match ending:
        case "withdraw":
            registry.withdraw("first")
        case "failure":
            registry.report_failure(StartFailure("first", "coder", "out of memory", None))
        case "silence":
            clock.advance(LAPSE_S)
    assert registry.announce_engine(engine("second"), FEW_CORES)
    assert [record.id for record in registry.snapshot().engines] == ["second"]


def test_failures_are_kept_after_their_engine_is_gone(registry: Registry, clock: Any) -> None:
    failure = StartFailure("engine-1", "coder", "out of memory", "/logs/engine.log")
    registry.announce_engine(engine(), FEW_CORES)
    registry.report_failure(failure)
    clock.advance(3600)
    snapshot = registry.snapshot()
    assert snapshot.failures == (failure,)
    assert snapshot.engines == ()


def test_only_the_last_failures_are_kept(registry: Registry) -> None:
    failures = [StartFailure(f"engine-{n}", "coder", "again", None) for n in range(1000)]
    for failure in failures:
        registry.report_failure(failure)
    kept = registry.snapshot().failures
    assert 3 <= len(kept) <= 100
    assert kept == tuple(failures[-len(kept) :])


def test_withdraw_removes_engines_and_gateways_and_ignores_strangers(registry: Registry) -> None:
    registry.announce_engine(engine(), FEW_CORES)
    registry.announce_gateway(gateway())
    for name in ("engine-1", "gw-1", "nobody"):
        registry.withdraw(name)
    assert registry.snapshot() == replace(registry.snapshot(), engines=(), gateways=())


def test_a_ready_engine_forgives_its_models_failures(registry: Registry) -> None:
    for model in ("coder", "helper"):
        registry.report_failure(StartFailure("e0", model, "no memory", None))
    registry.report_failure(StartFailure("gw-1", "coder", "no such parser", None, is_final=True))
    registry.announce_engine(engine("e1", state="ready"), 2)
    left = [(failure.model, failure.is_final) for failure in registry.snapshot().failures]
    assert left == [("helper", False), ("coder", True)]
