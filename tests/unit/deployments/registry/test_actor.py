"""The registry's state, with the test's own clock and without Ray."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from qwenfleet.deployments.registry.actor import AWAITED_S, LAPSE_S, Registry
from qwenfleet.deployments.registry.records import (
    DrainOrder,
    EngineRecord,
    GatewayRecord,
    Orders,
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


def may_load(registry: Registry, name: str, cores: int = FEW_CORES, **fields: Any) -> bool:
    return registry.announce_engine(engine(name, **fields), cores).may_load


@pytest.fixture
def registry(clock: Any) -> Registry:
    return Registry(clock)


def test_an_announcement_lists_its_engine_or_gateway(registry: Registry) -> None:
    ready = engine(state="ready", host="10.0.0.1", port=99, secret="s")
    registry.announce_engine(ready, FEW_CORES)
    registry.announce_gateway(gateway())
    snapshot = registry.snapshot()
    assert snapshot.engines == (ready,)
    assert snapshot.gateways == (gateway(),)
    assert snapshot.failures == ()


def test_a_gateway_receives_the_engines_when_it_announces_itself(registry: Registry) -> None:
    assert registry.announce_gateway(gateway()).engines == ()
    registry.announce_engine(engine("e0"), 2)
    assert [record.id for record in registry.announce_gateway(gateway()).engines] == ["e0"]


def test_the_latest_announcement_of_an_engine_counts(registry: Registry) -> None:
    registry.announce_engine(engine(state="ready"), FEW_CORES)
    registry.announce_engine(engine(state="draining"), FEW_CORES)
    assert [record.state for record in registry.snapshot().engines] == ["draining"]


def test_an_engine_or_gateway_silent_for_five_seconds_is_no_longer_listed(
    registry: Registry, clock: Any
) -> None:
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
    assert may_load(registry, "first")
    assert not may_load(registry, "second")
    assert may_load(registry, "elsewhere", node="node-2")
    loading = {record.id for record in registry.snapshot().engines if record.is_loading}
    assert loading == {"first", "elsewhere"}


def test_a_loading_engine_keeps_its_slot_until_it_is_ready(registry: Registry) -> None:
    assert may_load(registry, "first")
    assert not may_load(registry, "second")
    assert may_load(registry, "first", is_loading=True)
    assert not may_load(registry, "second")
    registry.announce_engine(engine("first", state="ready"), FEW_CORES)
    assert may_load(registry, "second")


def test_with_many_cores_several_engines_load_at_a_time(registry: Registry) -> None:
    answers = [may_load(registry, f"engine-{n}", cores=12) for n in range(5)]
    assert answers == [True, True, True, False, False]


def test_an_empty_registry_learns_which_engines_are_loading(registry: Registry) -> None:
    registry.announce_engine(engine("first", is_loading=True), FEW_CORES)
    assert not may_load(registry, "second")


@pytest.mark.parametrize("ending", ["withdraw", "failure", "silence"])
def test_a_loading_engine_that_leaves_frees_its_slot(
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
    assert may_load(registry, "second")
    assert [record.id for record in registry.snapshot().engines] == ["second"]


def test_failures_are_kept_after_their_engine_has_left(registry: Registry, clock: Any) -> None:
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


def test_withdraw_removes_engines_and_gateways_and_ignores_unknown_ids(registry: Registry) -> None:
    registry.announce_engine(engine(), FEW_CORES)
    registry.announce_gateway(gateway())
    for name in ("engine-1", "gw-1", "nobody"):
        registry.withdraw(name)
    assert registry.snapshot() == replace(registry.snapshot(), engines=(), gateways=())


def test_a_ready_engine_clears_its_models_failures(registry: Registry) -> None:
    for model in ("coder", "helper"):
        registry.report_failure(StartFailure("e0", model, "no memory", None))
    registry.report_failure(StartFailure("gw-1", "coder", "no such parser", None, is_final=True))
    registry.announce_engine(engine("e1", state="ready"), 2)
    left = [(failure.model, failure.is_final) for failure in registry.snapshot().failures]
    assert left == [("helper", False), ("coder", True)]


def test_a_drain_order_is_sent_with_every_announcement_until_the_engine_leaves(
    registry: Registry,
) -> None:
    order = DrainOrder("an operator drains it", 60.0)
    registry.announce_engine(engine("e1", state="ready"), FEW_CORES)
    registry.announce_engine(engine("e2", state="ready"), FEW_CORES)
    registry.drain("e1", order)
    for state in ("ready", "quarantined", "draining"):
        answer = registry.announce_engine(engine("e1", state=state), FEW_CORES)
        assert answer.drain == order
        assert registry.announce_engine(engine("e2", state=state), FEW_CORES).drain is None
    registry.withdraw("e1")
    assert registry.announce_engine(engine("e1", state="ready"), FEW_CORES).drain is None


def test_an_order_given_before_the_engine_announces_itself_is_kept(registry: Registry) -> None:
    order = DrainOrder("an operator drains it", 1.0)
    registry.drain("e1", order)
    assert registry.announce_engine(engine("e1"), FEW_CORES) == Orders(may_load=True, drain=order)


def test_the_second_order_counts(registry: Registry) -> None:
    registry.drain("e1", DrainOrder("slowly", 60.0))
    registry.drain("e1", DrainOrder("at once", 0.0))
    answer = registry.announce_engine(engine("e1", state="ready"), FEW_CORES)
    assert answer.drain == DrainOrder("at once", 0.0)


def test_a_quarantined_engine_does_not_clear_failures(registry: Registry) -> None:
    registry.report_failure(StartFailure("e0", "coder", "no memory", None))
    registry.announce_engine(engine("e1", state="quarantined", reason="slow"), FEW_CORES)
    assert len(registry.snapshot().failures) == 1


def test_a_departure_keeps_its_reason(registry: Registry, clock: Any) -> None:
    registry.announce_engine(engine("drained", state="draining", reason="for an update"), FEW_CORES)
    registry.announce_engine(engine("dead"), FEW_CORES)
    registry.announce_engine(engine("silent"), FEW_CORES)
    registry.announce_engine(engine("failed"), FEW_CORES)
    registry.announce_gateway(gateway("g1"))
    registry.withdraw("drained")
    registry.withdraw("dead", "its core process died")
    registry.withdraw("dead", "again")
    registry.report_failure(StartFailure("failed", "coder", "no memory", None))
    clock.advance(5)
    assert [(d.id, d.model, d.reason) for d in registry.snapshot().departures] == [
        ("drained", "coder", "for an update"),
        ("dead", "coder", "its core process died"),
        ("failed", "coder", "it did not start: no memory"),
        ("silent", "coder", "no announcement for 5 s"),
        ("g1", "", "no announcement for 5 s"),
    ]


def test_a_snapshot_tells_the_age_of_the_list(registry: Registry, clock: Any) -> None:
    """A registry that Ray has just restarted lists nobody yet."""
    clock.advance(1.5)
    assert registry.snapshot().up_s == 1.5


def test_gateway_gets_its_order_to_drain(registry: Registry) -> None:
    assert registry.announce_gateway(gateway("g1")).drain is None
    order = DrainOrder("the fleet stops", 5.0)
    registry.drain("g1", order)
    assert registry.announce_gateway(gateway("g1")).drain == order
    assert registry.announce_gateway(gateway("g2")).drain is None


def test_gateways_failures_are_forgotten_when_a_later_one_is_ready(registry: Registry) -> None:
    registry.announce_gateway(replace(gateway("old"), is_ready=True))
    registry.report_failure(StartFailure("g0", "", "an import failed", None))
    registry.announce_gateway(replace(gateway("old"), is_ready=True))
    registry.report_failure(StartFailure("e0", "coder", "no memory", None))
    registry.announce_gateway(gateway("g1"))
    assert len(registry.snapshot().failures) == 2
    registry.announce_gateway(replace(gateway("g1"), is_ready=True))
    assert [failure.engine for failure in registry.snapshot().failures] == ["e0"]


def test_the_next_engine_of_its_pool_takes_the_place_of_a_drained_one(registry: Registry) -> None:
    registry.announce_engine(engine("old", pool="a", state="draining"), FEW_CORES)
    registry.withdraw("old", "drained by an operator", is_replaced=True)
    (awaited,) = registry.snapshot().awaited
    assert (awaited.id, awaited.reason) == ("old", "drained by an operator")
    assert registry.announce_engine(engine("other", pool="b"), FEW_CORES).replaces == ""
    assert registry.announce_engine(engine("new", pool="a"), FEW_CORES).replaces == "old"
    assert registry.announce_engine(engine("new", pool="a"), FEW_CORES).replaces == "old"
    assert registry.announce_engine(engine("more", pool="a"), FEW_CORES).replaces == ""
    assert registry.snapshot().awaited == ()
    assert {e.id: e.replaces for e in registry.snapshot().engines}["new"] == "old"
    registry.announce_engine(engine("new", pool="a", state="ready"), FEW_CORES)
    assert not any(e.replaces for e in registry.snapshot().engines)


def test_an_engine_that_was_starting_before_takes_no_place(registry: Registry) -> None:
    registry.announce_engine(engine("early"), FEW_CORES)
    registry.announce_engine(engine("old", state="draining"), FEW_CORES)
    registry.withdraw("old", is_replaced=True)
    assert registry.announce_engine(engine("early"), FEW_CORES).replaces == ""


def test_a_place_is_free_again_when_its_replacement_did_not_start(registry: Registry) -> None:
    registry.announce_engine(engine("old", state="draining"), FEW_CORES)
    registry.withdraw("old", is_replaced=True)
    registry.announce_engine(engine("new"), FEW_CORES)
    registry.report_failure(StartFailure("new", "coder", "no memory", None))
    assert [one.id for one in registry.snapshot().awaited] == ["old"]
    assert registry.announce_engine(engine("third"), FEW_CORES).replaces == "old"


def test_a_place_that_nobody_takes_is_forgotten(registry: Registry, clock: Any) -> None:
    """As when the fleet is scaled down meanwhile."""
    registry.announce_engine(engine("old", state="draining"), FEW_CORES)
    registry.withdraw("old", is_replaced=True)
    clock.advance(AWAITED_S)
    assert registry.snapshot().awaited == ()
    assert registry.announce_engine(engine("new"), FEW_CORES).replaces == ""


def test_a_lost_engine_has_no_place(registry: Registry) -> None:
    registry.announce_engine(engine("old", state="ready"), FEW_CORES)
    registry.withdraw("old", "its core died")
    assert registry.announce_engine(engine("new"), FEW_CORES).replaces == ""


def test_a_restarted_registry_keeps_the_place_that_an_engine_reports(registry: Registry) -> None:
    orders = registry.announce_engine(engine("new", replaces="old"), FEW_CORES)
    assert orders.replaces == "old"
