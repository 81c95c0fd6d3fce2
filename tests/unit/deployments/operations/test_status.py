"""Tests how `qwenfleet status` renders a registry snapshot."""

from __future__ import annotations

import json
from dataclasses import replace as with_fields
from pathlib import Path

import pytest
from msgspec.structs import replace

from qwenfleet.cluster.errors import FleetNotFound
from qwenfleet.cluster.local import fleets as running_fleets
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.deployments.operations import attach, status
from qwenfleet.deployments.operations.failures import Deployed
from qwenfleet.deployments.operations.readiness import Readiness
from qwenfleet.deployments.registry.records import (
    Departure,
    EngineRecord,
    GatewayRecord,
    Snapshot,
    StartFailure,
)

FLEET = RunningFleet(
    pid=7,
    started_at=1.0,
    name="demo",
    url="http://127.0.0.1:8000",
    ray_address="127.0.0.1:6379",
    ray_token_path="/state/7.token",
    metrics_port=9100,
    models=["helper", "coder", "not started"],
)
SNAPSHOT = Snapshot(
    engines=(
        EngineRecord("e2", "helper", "node-1", 22, "starting"),
        EngineRecord(
            "e9", "coder", "node-2", 29, "draining", running=3, reason="drained by an operator"
        ),
        EngineRecord("e5", "coder", "node-1", 25, "quarantined", reason="no step for 9.1 s"),
        EngineRecord(
            "e1", "coder", "node-1", 21, "ready", running=12, waiting=4, kv_usage=0.125, secret="s3"
        ),
    ),
    gateways=(
        GatewayRecord("gw-b", "node-1", 32, is_ready=False),
        GatewayRecord("gw-a", "node-1", 31, is_ready=True, models=("coder",), requests=16),
    ),
    failures=(),
)

READY = Readiness(200)


@pytest.fixture
def fleets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunningFleet]:
    found: list[RunningFleet] = []
    monkeypatch.setattr(running_fleets, "running", lambda: found)
    return found


def test_every_configured_model_is_summarized_with_its_engines() -> None:
    summary = status.summarise(FLEET, SNAPSHOT, READY)
    assert (summary.name, summary.url) == ("demo", "http://127.0.0.1:8000")
    assert summary.metrics_url == "http://127.0.0.1:9100/metrics"
    assert [engine.id for engine in summary.engines] == ["e1", "e5", "e9", "e2"]
    assert [gateway.id for gateway in summary.gateways] == ["gw-a", "gw-b"]
    assert [(model.id, model.engines, model.ready) for model in summary.models] == [
        ("helper", 1, 0),
        ("coder", 3, 1),
        ("not started", 0, 0),
    ]


def test_json_has_every_figure_and_omits_secrets() -> None:
    text = json.dumps(status.summarise(FLEET, SNAPSHOT, READY).as_json())
    tree = json.loads(text)
    assert tree["engines"][0] == {
        "id": "e1",
        "model": "coder",
        "node": "node-1",
        "pid": 21,
        "state": "ready",
        "running": 12,
        "waiting": 4,
        "kv_usage": 0.125,
        "reason": "",
        "pool": "",
        "replaces": "",
    }
    assert tree["engines"][1]["reason"] == "no step for 9.1 s"
    assert tree["gateways"][0]["models"] == ["coder"]
    assert "s3" not in text
    assert "token" not in text


def test_table_has_a_line_for_each_in_aligned_columns() -> None:
    assert status.table(status.summarise(FLEET, SNAPSHOT, READY)).splitlines() == [
        "demo at http://127.0.0.1:8000, metrics at http://127.0.0.1:9100/metrics",
        "HTTP: ready",
        "",
        "MODEL        ENGINES  READY",
        "helper       1        0",
        "coder        3        1",
        "not started  0        0",
        "",
        "GATEWAY  PID  READY  REQUESTS",
        "gw-a     31   yes    16",
        "gw-b     32   no     0",
        "",
        "ENGINE  MODEL   PID  STATE        RUNNING  WAITING  KV",
        "e1      coder   21   ready        12       4        12%",
        "e5      coder   25   quarantined  0        0        0%",
        "e9      coder   29   draining     3        0        0%",
        "e2      helper  22   starting     0        0        0%",
        "e5 is quarantined: no step for 9.1 s",
        "e9 is draining: drained by an operator",
    ]


def test_failing_requests_are_shown_whatever_the_engines_say() -> None:
    shown = status.table(status.summarise(FLEET, SNAPSHOT, Readiness(503, "no_engine")))
    assert "HTTP: 503 no_engine" in shown.splitlines()
    silent = status.summarise(FLEET, SNAPSHOT, Readiness())
    assert "HTTP: does not answer" in status.table(silent).splitlines()
    assert silent.problems == (f"{FLEET.url} does not answer",)
    assert not silent.is_complete


def test_serves_figures_stand_in_for_a_registry_that_does_not_answer() -> None:
    deployments = [
        Deployed("gateway", "HEALTHY", "", running=1, replicas=1),
        Deployed("engine-0", "HEALTHY", "", running=2, replicas=2),
        Deployed("engine-1-big", "UPDATING", "", running=1, replicas=2),
        Deployed("engine-1-small", "HEALTHY", "", running=3, replicas=3),
    ]
    summary = status.summarise(FLEET, None, READY, deployments, ["the registry does not answer"])
    assert [(model.id, model.engines, model.ready) for model in summary.models] == [
        ("helper", 2, 2),
        ("coder", 5, 4),
        ("not started", 0, 0),
    ]
    assert status.table(summary).splitlines()[-1] == "problem: the registry does not answer"
    assert not summary.is_complete


def test_last_failed_start_is_shown_with_its_reason() -> None:
    failure = StartFailure("e7", "coder", "no\nmemory", "/log")
    shown = status.table(status.summarise(FLEET, replace(SNAPSHOT, failures=(failure,)), READY))
    assert shown.splitlines()[-1] == "last failed start: e7 of coder: no memory (see /log)"


def test_a_drained_engines_replacement_is_shown_as_such() -> None:
    starting = EngineRecord("e3", "coder", "node-1", 23, "starting", replaces="e9")
    awaited = (Departure("e8", "coder", "drained by an operator"),)
    summary = status.summarise(FLEET, Snapshot((starting,), (), (), awaited=awaited), READY)
    assert summary.as_json()["engines"][0]["replaces"] == "e9"
    assert summary.as_json()["awaited"] == ("e8",)
    text = status.table(summary)
    assert "e3 is starting: it replaces e9, which was drained" in text
    assert "e8 was drained: its replacement has not begun to start" in text


def test_empty_fleet_has_a_table() -> None:
    empty = status.table(status.summarise(FLEET, Snapshot((), (), ()), READY))
    assert "GATEWAY" in empty
    assert "ENGINE" in empty


def test_newest_fleet_is_found(fleets: list[RunningFleet]) -> None:
    other = with_fields(FLEET, pid=8, url="http://127.0.0.1:8001")
    fleets += [FLEET, other]
    assert attach.find() is FLEET
    assert attach.find(8001) is other


def test_port_without_a_fleet_lists_the_running_fleets(fleets: list[RunningFleet]) -> None:
    fleets.append(FLEET)
    with pytest.raises(FleetNotFound) as caught:
        attach.find(80)  # only a prefix of 8000
    assert "port 80" in str(caught.value)
    assert FLEET.url in str(caught.value)


def test_killed_launcher_is_named(
    fleets: list[RunningFleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_fleets, "killed", lambda: [FLEET])
    with pytest.raises(
        FleetNotFound, match=r"launcher \(process 7\) of fleet 'demo' .* was killed"
    ):
        attach.find()


def test_without_a_fleet_the_error_says_how_to_start_one(fleets: list[RunningFleet]) -> None:
    with pytest.raises(FleetNotFound, match="qwenfleet serve"):
        attach.find(8000)
