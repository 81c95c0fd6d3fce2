"""Tests of `qwenfleet drain`: choosing the engine, refusals, and when the drain is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from qwenfleet.cluster.errors import DrainRefused
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.deployments.operations import drain as module
from qwenfleet.deployments.operations.drain import GRACE_S, choose, drain
from qwenfleet.deployments.registry import client as registry_module
from qwenfleet.deployments.registry.records import DrainOrder, EngineRecord, Snapshot

FLEET = RunningFleet(
    pid=7,
    started_at=1.0,
    name="demo",
    url="http://127.0.0.1:8000",
    ray_address="127.0.0.1:6379",
    ray_token_path="/state/7.token",
    metrics_port=9100,
    models=["coder"],
)


def engine(name: str, state: Any = "ready", model: str = "coder", **fields: Any) -> EngineRecord:
    return EngineRecord(name, model, "node-1", 21, state, **fields)


ENGINES = [engine("abc1"), engine("abc2"), engine("b77")]


def refusal(engines: list[EngineRecord], name: str, *, is_forced: bool = False) -> DrainRefused:
    with pytest.raises(DrainRefused) as caught:
        choose(engines, name, is_forced=is_forced)
    return caught.value


@pytest.mark.parametrize("name", ["b77", "b7", "b"])
def test_engine_is_chosen_by_its_id_or_the_start_of_it(name: str) -> None:
    assert choose(ENGINES, name, is_forced=False) is ENGINES[2]


def test_whole_id_wins_over_a_longer_id_with_that_start() -> None:
    engines = [engine("abc"), engine("abc1")]
    assert choose(engines, "abc", is_forced=False) is engines[0]


def test_unknown_engine_is_refused_with_a_list_of_all() -> None:
    assert str(refusal(ENGINES, "x")) == "no engine is called 'x'. There are: abc1, abc2, b77."


def test_ambiguous_start_is_refused_with_the_matches() -> None:
    reported = str(refusal(ENGINES, "abc"))
    assert reported == "more than one engine is called 'abc'. There are: abc1, abc2."


def test_fleet_without_engines_lists_none() -> None:
    assert str(refusal([], "x")) == "no engine is called 'x'. There are: none."


@pytest.mark.parametrize(
    "others",
    [
        [],
        [engine("b", "starting"), engine("c", "draining"), engine("d", "quarantined")],
        [engine("b", model="helper")],
    ],
    ids=["alone", "others not ready", "others of another model"],
)
def test_last_ready_engine_of_a_model_drains_only_with_force(
    others: list[EngineRecord],
) -> None:
    last = engine("a1")
    assert str(refusal([last, *others], "a1")) == (
        "engine 'a1' is the last ready engine of model 'coder', whose requests would wait for its "
        "replacement. Wait until another engine is ready, or add --force."
    )
    assert choose([last, *others], "a1", is_forced=True) is last


def test_engine_that_is_not_ready_may_drain_while_another_is_ready() -> None:
    engines = [engine("a", "quarantined"), engine("b")]
    assert choose(engines, "a", is_forced=False) is engines[0]


class Registry:
    """Stands in for a fleet's registry: gives prepared answers in turn and records orders."""

    def __init__(self, *snapshots: list[EngineRecord]) -> None:
        self.snapshots = list(snapshots)
        self.orders: list[tuple[str, str, DrainOrder]] = []
        self.now = 100.0

    def read(self, fleet: str) -> Snapshot:
        assert fleet == "demo"
        engines = self.snapshots.pop(0) if len(self.snapshots) > 1 else self.snapshots[0]
        return Snapshot(tuple(engines), (), ())

    def drain(self, fleet: str, engine: str, order: DrainOrder) -> None:
        self.orders.append((fleet, engine, order))

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    @contextmanager
    def attached(fleet: RunningFleet) -> Iterator[None]:
        assert fleet is FLEET
        yield

    def answering(*snapshots: list[EngineRecord]) -> Registry:
        registry = Registry(*snapshots)
        monkeypatch.setattr(module, "attached", attached)
        monkeypatch.setattr(registry_module, "read", registry.read)
        monkeypatch.setattr(registry_module, "drain", registry.drain)
        return registry

    return answering


def order(registry: Registry, name: str, reported: list[str]) -> None:
    drain(
        FLEET,
        name,
        deadline_s=60.0,
        is_forced=False,
        say=reported.append,
        clock=lambda: registry.now,
        sleep=registry.sleep,
    )


@pytest.mark.parametrize("failure", [ValueError("no such actor"), GetTimeoutError()])
def test_drain_waits_for_a_registry_that_restarts(
    answering: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    registry = answering([engine("a1"), engine("a2")], [engine("a1"), engine("a2")], [engine("a2")])

    def drain(fleet: str, engine: str, order: DrainOrder) -> None:
        if 101.0 <= registry.now < 120.0:
            raise failure

    monkeypatch.setattr(registry_module, "drain", drain)
    reported: list[str] = []
    order(registry, "a1", reported)
    assert reported[-1].startswith("a1 stopped")
    assert registry.now > 120.0


def test_drain_is_ordered_and_waited_for(answering: Any) -> None:
    leaving = engine("a1", running=3, waiting=1)
    draining = engine("a1", "draining", running=1)
    registry = answering(
        [leaving, engine("b2")], [leaving, engine("b2")], [draining, engine("b2")], [engine("b2")]
    )
    reported: list[str] = []
    order(registry, "a", reported)
    assert set(registry.orders) == {("demo", "a1", DrainOrder("drained by an operator", 60.0))}
    assert len(registry.orders) > 1, "a registry that restarts gets the order again"
    assert reported == [
        "draining a1: 4 requests to move",
        "a1 stopped; another engine of coder starts in its place",
    ]


def test_refused_drain_is_not_ordered(answering: Any) -> None:
    registry = answering([engine("a1")])
    with pytest.raises(DrainRefused, match="last ready engine"):
        order(registry, "a1", [])
    assert registry.orders == []


def test_engine_that_does_not_stop_is_reported_after_its_deadline(answering: Any) -> None:
    registry = answering([engine("a1"), engine("b2")])
    with pytest.raises(DrainRefused) as caught:
        order(registry, "a1", [])
    assert registry.now >= 100 + 60 + GRACE_S
    assert str(caught.value) == (
        "engine 'a1' did not stop within 90 s. "
        "See its log, or kill its process; its streams continue on other engines."
    )


def test_starting_engine_is_refused() -> None:
    with pytest.raises(DrainRefused, match="still starting"):
        choose([engine("a1", "starting"), engine("b2")], "a1", is_forced=True)
