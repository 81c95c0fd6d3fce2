"""Tests draining hosts: choosing the engines, refusals, and when the drain is done."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from qwenfleet.cluster.errors import DrainRefused
from qwenfleet.deployments.operations.drain import CLOSED_S, GRACE_S
from qwenfleet.deployments.operations.drain_hosts import (
    check,
    drain_fleet,
    drain_fleets,
    leaving,
    node_ids,
)
from qwenfleet.deployments.registry import client
from qwenfleet.deployments.registry.actor import Registry
from qwenfleet.deployments.registry.records import DrainOrder, EngineRecord, Snapshot

NODES = frozenset({"node-1"})
ORDER = DrainOrder("its node is drained by an operator", 60.0)


def engine(
    name: str, node: str = "node-1", state: Any = "ready", model: str = "coder", **fields: Any
) -> EngineRecord:
    return EngineRecord(name, model, node, 21, state, **fields)


def test_live_ray_nodes_are_found_by_their_address() -> None:
    nodes = [
        {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True},
        {"NodeID": "b", "NodeManagerAddress": "10.0.0.1", "Alive": False},
        {"NodeID": "c", "NodeManagerAddress": "10.0.0.2", "Alive": True},
    ]
    assert node_ids(nodes, ["10.0.0.1", "10.0.0.9"]) == {"a"}


def test_engine_drains_if_any_of_its_nodes_is_chosen() -> None:
    spread = engine("e2", "node-2", nodes=("node-2", "node-1"))
    engines = [engine("e1"), spread, engine("e3", "node-3")]
    assert leaving(engines, NODES) == [engines[0], spread]


def test_draining_the_last_ready_engine_of_a_model_needs_force() -> None:
    engines = [engine("e1"), engine("e2", model="small"), engine("e3", "node-2", model="small")]
    with pytest.raises(DrainRefused) as caught:
        check(engines, leaving(engines, NODES), is_forced=False)
    assert str(caught.value) == (
        "every ready engine of model 'coder' uses this node, so requests would have to wait for a "
        "new engine. Wait until an engine on another node is ready, or add --force."
    )
    check(engines, leaving(engines, NODES), is_forced=True)


def test_engines_that_are_not_ready_need_no_force() -> None:
    engines = [engine("e1", state="quarantined"), engine("e2", "node-2", "starting")]
    check(engines, leaving(engines, NODES), is_forced=False)


class Fleet:
    """Stands in for the registry client, with a clock of its own."""

    AWAY = client.AWAY

    def __init__(self, *engines: EngineRecord, takes_s: float) -> None:
        self.now = 100.0
        self.engines = list(engines)
        self.takes_s = takes_s
        self.orders: dict[str, DrainOrder] = {}
        self.stops_at: dict[str, float] = {}
        self.closed: dict[str, float] = {}
        self.is_empty_at: float | None = None
        self.restarts_at: float = 1e9
        self.away_s = 20.0
        self.failure: Exception = ValueError("no actor is called demo-registry")

    def answer(self) -> None:
        """Fail while the registry restarts; it loses its state then."""
        if self.restarts_at <= self.now < self.restarts_at + self.away_s:
            self.closed = {}
            raise self.failure

    def read(self, fleet: str) -> Snapshot:
        assert fleet == "demo"
        self.answer()
        back_at = self.restarts_at + self.away_s
        if back_at <= self.now < back_at + client.ANNOUNCE_INTERVAL_S:
            return Snapshot((), (), ())
        if self.is_empty_at is not None and self.now == self.is_empty_at:
            return Snapshot((), (), ())
        living = [e for e in self.engines if self.stops_at.get(e.id, 1e9) > self.now]
        return Snapshot(tuple(living), (), ())

    def drain(self, fleet: str, engine: str, order: DrainOrder) -> None:
        self.answer()
        self.orders[engine] = order
        self.stops_at.setdefault(engine, self.now + self.takes_s)

    def close_node(self, fleet: str, node: str, for_s: float) -> None:
        self.answer()
        self.closed[node] = for_s

    def run(self, **options: Any) -> list[str]:
        reported: list[str] = []
        drain_fleet(
            self,
            "demo",
            NODES,
            ORDER,
            say=reported.append,
            clock=lambda: self.now,
            sleep=self.sleep,
            **({"is_forced": False} | options),
        )
        return reported

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_engines_of_a_node_drain_in_parallel_and_none_starts_there() -> None:
    other = engine("e3", "node-2")
    fleet = Fleet(engine("e1", running=2, waiting=1), engine("e2"), other, takes_s=10)
    reported = fleet.run()
    assert set(fleet.orders) == {"e1", "e2"}
    assert fleet.orders["e1"] == ORDER
    assert GRACE_S + CLOSED_S < fleet.closed["node-1"] <= 60 + GRACE_S + CLOSED_S
    assert reported[0] == "draining e1 of coder: 3 requests"
    assert sorted(reported[2:]) == ["e1 stopped", "e2 stopped"]
    assert 110 < fleet.now < 115, "together, not one after the other"


def test_empty_list_for_a_moment_does_not_end_the_drain() -> None:
    fleet = Fleet(engine("e1"), engine("e2", "node-2"), takes_s=10)
    fleet.is_empty_at = 101.0
    fleet.run()
    assert fleet.now > 110


@pytest.mark.parametrize(
    "failure",
    [ValueError("no such actor"), RayActorError(), GetTimeoutError()],
    ids=lambda error: type(error).__name__,
)
def test_drain_waits_for_a_registry_that_restarts(failure: Exception) -> None:
    fleet = Fleet(engine("e1"), engine("e2", "node-2"), takes_s=30)
    fleet.restarts_at, fleet.failure = 105.0, failure
    assert fleet.run()[1:] == ["e1 stopped"]
    assert fleet.now > 130, "not before it stopped"
    assert "node-1" in fleet.closed, "closed again after the restart"


def test_registry_that_stays_away_ends_the_drain_at_its_deadline() -> None:
    fleet = Fleet(engine("e1"), engine("e2", "node-2"), takes_s=30)
    fleet.restarts_at, fleet.away_s = 105.0, 1e6
    with pytest.raises(DrainRefused, match="e1 did not stop within 90 s"):
        fleet.run()


class Fleets(Fleet):
    """Two fleets of one Ray cluster, in real time."""

    def __init__(self, **fleets: list[EngineRecord]) -> None:
        super().__init__(takes_s=0)
        self.fleets = fleets
        self.draining: set[str] = set()
        self.both = threading.Barrier(len(fleets))

    def read(self, fleet: str) -> Snapshot:
        return Snapshot(tuple(e for e in self.fleets[fleet] if e.id not in self.draining), (), ())

    def drain(self, fleet: str, engine: str, order: DrainOrder) -> None:
        if engine not in self.draining:
            self.both.wait(timeout=10)  # fails unless both drains run in parallel
            self.draining.add(engine)


def test_fleets_of_a_cluster_drain_in_parallel_with_one_deadline() -> None:
    fleets = Fleets(
        one=[engine("a1"), engine("a2", "node-2")], two=[engine("b1"), engine("b2", "node-2")]
    )
    reported: list[str] = []
    drain_fleets(fleets, ["one", "two"], NODES, ORDER, is_forced=False, say=reported.append)
    assert {"a1 stopped", "b1 stopped"} <= set(reported)
    drain_fleets(fleets, [], NODES, ORDER, is_forced=False, say=reported.append)


def test_one_refusal_keeps_every_fleet_from_draining() -> None:
    fleets = Fleets(one=[engine("a1"), engine("a2", "node-2")], two=[engine("b1")])
    with pytest.raises(DrainRefused):
        drain_fleets(fleets, ["one", "two"], NODES, ORDER, is_forced=False, say=print)
    assert (fleets.draining, fleets.closed) == (set(), {})


def test_starting_engine_is_held_and_not_waited_for() -> None:
    fleet = Fleet(engine("e1", state="starting"), engine("e2", "node-2"), takes_s=10)
    assert fleet.run() == []
    assert "node-1" in fleet.closed
    assert fleet.now == 100.0


def test_refused_drain_closes_no_node() -> None:
    fleet = Fleet(engine("e1"), takes_s=10)
    with pytest.raises(DrainRefused):
        fleet.run()
    assert (fleet.closed, fleet.orders) == ({}, {})
    fleet.run(is_forced=True)


def test_engines_that_do_not_stop_are_named_after_the_deadline() -> None:
    fleet = Fleet(engine("e1"), engine("e2", "node-2"), takes_s=1e6)
    with pytest.raises(DrainRefused, match=r"e1 did not stop within 90 s\. See the engine log"):
        fleet.run()


def test_closed_node_holds_starts_until_it_opens() -> None:
    now = [100.0]
    held = Registry(clock=lambda: now[0])
    held.close_node("node-1", 30.0)
    starting = engine("e1", state="starting")
    spread = engine("e2", "node-2", "starting", nodes=("node-2", "node-1"))
    assert not held.announce_engine(starting, node_cores=64).may_load
    assert not held.announce_engine(spread, node_cores=64).may_load
    now[0] += 31.0
    assert held.announce_engine(starting, node_cores=64).may_load
    assert held.announce_engine(spread, node_cores=64).may_load
