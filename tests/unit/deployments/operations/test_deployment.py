"""Tests how a job watches its deployment, without Ray, Serve or a registry."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve as ray_serve
from ray.exceptions import RayActorError

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import DeployFailed, EngineStartError, FleetError, StartTimeout
from qwenfleet.deployments.operations import deployment as module
from qwenfleet.deployments.operations import entrance
from qwenfleet.deployments.operations.deployment import Deployment
from qwenfleet.deployments.operations.entrance import Listening
from qwenfleet.deployments.operations.progress import Stages
from qwenfleet.deployments.registry import client
from qwenfleet.deployments.registry.records import (
    EngineRecord,
    GatewayRecord,
    Snapshot,
    StartFailure,
)

CONFIG = FleetConfig(models=(ModelConfig(id="coder", engine="scripted"),))
ENGINE = EngineRecord("e1", "coder", "node-1", 1, "ready", host="10.0.0.1", port=1, secret="s")
GATEWAY = GatewayRecord("gw-1", "node-1", 2, True, ("coder",))
READY = Snapshot(engines=(ENGINE,), gateways=(GATEWAY,), failures=())
NOTHING = Snapshot(engines=(), gateways=(), failures=())
TRACEBACK = "Error:\nTraceback (most recent call last):\n  File x\nRuntimeError: no nms"


def failure(engine: str, *, is_final: bool = False) -> StartFailure:
    return StartFailure(engine, "coder", "out of memory", "/tmp/e.log", is_final)


def part(name: str, status: str, message: str = "", running: int = 0) -> Any:
    return SimpleNamespace(
        status=SimpleNamespace(value=status), message=message, replica_states={"RUNNING": running}
    )


class Cluster:
    """Stands in for Serve and the registry. Each poll runs the next of `turns`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.status = "DEPLOYING"
        self.parts: dict[str, Any] = {}
        self.snapshot = NOTHING
        self.listening = Listening("0.0.0.0", 8000, False, {"node-1": "10.0.0.1"})
        self.awaited: list[str] = []
        self.turns: list[Callable[[], None]] = []
        self.output = io.StringIO()
        self.is_away = self.is_removed = False
        monkeypatch.setattr(ray_serve, "status", self.serve_status)
        monkeypatch.setattr(client, "read", lambda fleet: self.snapshot)
        monkeypatch.setattr(entrance, "read", lambda: self.listening)
        monkeypatch.setattr(entrance, "await_answer", self.awaited.append)
        context = SimpleNamespace(get_node_id=lambda: "node-1")
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(module, "POLL_S", 0.0)

    def serve_status(self) -> Any:
        if self.turns:
            self.turns.pop(0)()
        if self.is_away:
            raise RayActorError
        one = SimpleNamespace(status=self.status, deployments=self.parts)
        return SimpleNamespace(applications={} if self.is_removed else {CONFIG.name: one})

    def becomes(self, **values: Any) -> Callable[[], None]:
        return lambda: self.__dict__.update(values)

    def wait(self, timeout_s: float = 30.0) -> str:
        Deployment(CONFIG, Stages(self.output)).wait(timeout_s)
        return self.output.getvalue()

    def fail(self, timeout_s: float = 30.0) -> FleetError:
        with pytest.raises(FleetError) as caught:
            self.wait(timeout_s)
        return caught.value


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_job_prints_the_address_that_answers(cluster: Cluster) -> None:
    cluster.turns = [lambda: None, cluster.becomes(status="RUNNING", snapshot=READY)]
    printed = cluster.wait()
    assert "ready: http://10.0.0.1:8000" in printed
    assert "keeps running when this job ends" in printed
    assert cluster.awaited == ["http://10.0.0.1:8000"]


def test_job_warns_of_a_serve_that_listens_on_loopback(cluster: Cluster) -> None:
    cluster.listening = Listening("127.0.0.1", 8000, False, {"node-1": "10.0.0.1"})
    cluster.status, cluster.snapshot = "RUNNING", READY
    printed = cluster.wait()
    assert "note: only programs on node 10.0.0.1 reach http://127.0.0.1:8000" in printed
    assert cluster.awaited == ["http://127.0.0.1:8000"]


def test_loopback_of_another_node_is_not_asked(cluster: Cluster) -> None:
    cluster.listening = Listening("127.0.0.1", 8000, False, {"node-2": "10.0.0.2"})
    cluster.status, cluster.snapshot = "RUNNING", READY
    assert "only programs on node 10.0.0.2" in cluster.wait()
    assert cluster.awaited == []


def test_fleet_that_is_not_the_new_one_yet_is_not_ready(cluster: Cluster) -> None:
    cluster.snapshot = READY
    assert isinstance(cluster.fail(timeout_s=0.05), StartTimeout)
    assert cluster.output.getvalue() == ""


def test_restart_of_the_controller_does_not_end_the_job(cluster: Cluster) -> None:
    cluster.status, cluster.snapshot = "RUNNING", READY
    cluster.turns = [cluster.becomes(is_away=True), cluster.becomes(is_away=False)]
    assert "ready: " in cluster.wait()


def test_removed_fleet_ends_the_job(cluster: Cluster) -> None:
    cluster.is_removed = True
    assert "was removed while it started" in str(cluster.fail())


def test_second_identical_failure_is_reported_and_the_third_ends_the_job(cluster: Cluster) -> None:
    failures = tuple(failure(f"e{number}") for number in range(3))
    cluster.turns = [
        cluster.becomes(snapshot=Snapshot((), (), failures[:count])) for count in (1, 2, 3)
    ]
    error = cluster.fail()
    assert isinstance(error, EngineStartError)
    assert error.reason == "out of memory"
    assert cluster.output.getvalue().count("failed to start 2 times: out of memory") == 1


def test_gateway_that_cannot_be_built_ends_the_job(cluster: Cluster) -> None:
    message = f"The deployment failed to start 3 times in a row. {TRACEBACK}"
    cluster.parts = {"gateway": part("gateway", "DEPLOY_FAILED", message)}
    cluster.status = "DEPLOY_FAILED"
    error = str(cluster.fail())
    assert "RuntimeError: no nms" in error
    assert "Traceback" not in error


def test_failures_of_an_earlier_deployment_do_not_end_this_one(cluster: Cluster) -> None:
    old = tuple(failure(f"e{number}", is_final=True) for number in range(3))
    cluster.snapshot = Snapshot((), (), old)
    ready = Snapshot(READY.engines, READY.gateways, old)
    cluster.turns = [lambda: None, cluster.becomes(status="RUNNING", snapshot=ready)]
    assert "ready: " in cluster.wait()


def test_failure_of_a_gateway_that_is_kept_ends_the_job(cluster: Cluster) -> None:
    broken = GatewayRecord("gw-1", "node-1", 2, False, ())
    cluster.snapshot = Snapshot((ENGINE,), (broken,), (failure("gw-1", is_final=True),))
    cluster.status = "RUNNING"
    assert "out of memory" in str(cluster.fail())


def test_failed_update_names_what_goes_on(cluster: Cluster) -> None:
    message = f"The deployment failed to start 3 times in a row. {TRACEBACK}"
    cluster.snapshot = READY
    cluster.parts = {
        "engine-0": part("engine-0", "DEPLOY_FAILED", message, running=1),
        "gateway": part("gateway", "HEALTHY", running=2),
    }
    cluster.status = "DEPLOY_FAILED"
    error = cluster.fail()
    assert isinstance(error, DeployFailed)
    assert "engine-0: RuntimeError: no nms" in str(error)
    assert "1 of engine-0, 2 of gateway" in str(error)


def test_replicas_that_find_no_node_are_reported_once(cluster: Cluster) -> None:
    message = (
        "Deployment 'engine-0' in application 'job' has 2 replicas that have taken more than 30s "
        "to be scheduled. This may be due to waiting for the cluster to auto-scale or for a "
        "runtime environment to be installed. Resources required for each replica: "
        '{"CPU": 1.0, "GPU": 8.0}, total resources available: {"CPU": 3.0}. Use `ray status`.'
    )
    cluster.parts = {"engine-0": part("engine-0", "UPDATING", message)}
    cluster.turns = [lambda: None] * 3 + [cluster.becomes(status="RUNNING", snapshot=READY)]
    printed = cluster.wait()
    assert 'engine-0 waits for nodes: 2 more, each with {"CPU": 1.0, "GPU": 8.0} free' in printed
    assert printed.count("waits for nodes") == 1


def test_registry_that_is_away_ends_no_update(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(fleet: str) -> Snapshot:
        raise ValueError("no registry")

    message = f"A replica failed to start with exception. Retrying 0 more time(s). {TRACEBACK}"
    cluster.parts = {"engine-0": part("engine-0", "UPDATING", message, running=1)}
    monkeypatch.setattr(client, "read", away)
    assert isinstance(cluster.fail(timeout_s=0.05), StartTimeout)
