"""Tests that `status` answers in time with what it could ask."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import ray

from qwenfleet.cluster.errors import FleetNotFound
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.deployments.operations import inquiry, observer
from qwenfleet.deployments.operations.failures import Deployed
from qwenfleet.deployments.operations.parts import GCS, RAYLET
from qwenfleet.deployments.operations.readiness import Readiness
from qwenfleet.deployments.registry import client
from qwenfleet.deployments.registry.records import EngineRecord, Snapshot

FLEET = RunningFleet(7, 1.0, "demo", "http://127.0.0.1:1", "127.0.0.1:2", "/7.token", 9, ["coder"])
ENGINE = EngineRecord("e1", "coder", "n", 3, "ready")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[Any, int]:
    parts = {GCS: 1, RAYLET: 2}

    class Reader:
        def __init__(self, launcher: int) -> None:
            assert launcher == FLEET.pid

        def read(self) -> Any:
            return parts

    monkeypatch.setattr(inquiry, "PartReader", Reader)
    monkeypatch.setattr(inquiry, "prepare", lambda running: None)
    monkeypatch.setattr(inquiry, "probe", lambda url: Readiness(200))
    monkeypatch.setattr(inquiry, "attached", lambda running: nullcontext())
    return parts


VIEW = (Deployed("gateway", "HEALTHY", "", 2, 2), Deployed("engine-0", "HEALTHY", "", 1, 1))


@pytest.mark.usefixtures("parts")
def test_registry_is_asked_again_while_its_list_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = iter([Snapshot((), (), (), (), 0.4), Snapshot((ENGINE,), (), (), (), 0.7)])
    monkeypatch.setattr(client, "read", lambda fleet, timeout_s: next(snapshots))
    monkeypatch.setattr(observer, "serve_view", lambda fleet: VIEW)
    answer = inquiry.read(FLEET)
    assert [engine.id for engine in answer.engines] == ["e1"]
    assert answer.http == "ready"
    assert answer.is_complete


@pytest.mark.usefixtures("parts")
def test_young_list_that_stays_short_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "YOUNG_WAIT_S", 0.0)
    monkeypatch.setattr(client, "read", lambda fleet, timeout_s: Snapshot((), (), (), (), 3.0))
    monkeypatch.setattr(observer, "serve_view", lambda fleet: VIEW)
    answer = inquiry.read(FLEET)
    assert (answer.models[0].engines, answer.models[0].ready) == (1, 1)
    assert answer.problems == ("the registry has just restarted: figures of models are Serve's",)


@pytest.mark.usefixtures("parts")
def test_registry_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(fleet: str, timeout_s: float) -> Snapshot:
        raise ray.exceptions.GetTimeoutError

    view = (Deployed("engine-0", "HEALTHY", "", 2, 2),)
    monkeypatch.setattr(client, "read", away)
    monkeypatch.setattr(observer, "serve_view", lambda fleet: view)
    answer = inquiry.read(FLEET)
    assert (answer.models[0].engines, answer.models[0].ready) == (2, 2)
    assert answer.problems == ("the registry does not answer: figures of models are Serve's",)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    goes_on = threading.Event()
    monkeypatch.setattr(inquiry, "_ask", lambda running: goes_on.wait())
    monkeypatch.setattr(inquiry, "LIMIT_S", 0.05)
    yield
    goes_on.set()


@pytest.mark.usefixtures("parts", "hanging")
def test_ray_that_does_not_answer_is_named_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_exit: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *call: at_exit.append(call))
    answer = inquiry.read(FLEET)
    assert answer.problems[0].startswith("Ray does not answer")
    assert answer.http == "ready"
    assert at_exit == [(os._exit, 1)]


@pytest.mark.usefixtures("hanging")
def test_dead_part_is_named_without_asking_ray(parts: dict[Any, int]) -> None:
    del parts[GCS]
    assert inquiry.read(FLEET).problems == ("Ray's GCS is dead: the fleet ends",)


@pytest.mark.usefixtures("parts")
def test_cluster_that_cannot_be_joined_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def attached(running: RunningFleet) -> Any:
        raise FleetNotFound("Ray cannot join 127.0.0.1:2", "See that its head answers.")

    monkeypatch.setattr(inquiry, "attached", attached)
    assert inquiry.read(FLEET).problems == (
        "Ray cannot join 127.0.0.1:2. See that its head answers.",
    )
