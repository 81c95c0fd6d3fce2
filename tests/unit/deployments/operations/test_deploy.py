from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve as ray_serve
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.experimental import internal_kv
from ray.serve.exceptions import RayServeException

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.deployments import __main__ as command
from qwenfleet.deployments.app import application
from qwenfleet.deployments.operations import deploy
from qwenfleet.deployments.operations.deploy import _code_hash
from qwenfleet.deployments.registry import client
from qwenfleet.deployments.registry.actor import Registry, ask


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "code" / "a.py").write_text("a = 1\n")
    (tmp_path / "fleet.yaml").write_text("name: one\n")
    return tmp_path


def test_code_hash_ignores_the_configuration_and_caches(checkout: Path) -> None:
    before = _code_hash(checkout, checkout / "fleet.yaml")
    (checkout / "fleet.yaml").write_text("name: two\n")
    (checkout / "code" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert _code_hash(checkout, checkout / "fleet.yaml") == before


@pytest.mark.parametrize("change", ["edited", "added", "renamed"])
def test_code_hash_covers_every_other_file(checkout: Path, change: str) -> None:
    before = _code_hash(checkout, checkout / "fleet.yaml")
    source = checkout / "code" / "a.py"
    if change == "edited":
        source.write_text("a = 2\n")
    elif change == "added":
        (checkout / "template.jinja").write_text("x")
    else:
        source.rename(source.with_name("b.py"))
    assert _code_hash(checkout, checkout / "fleet.yaml") != before


def test_registry_keeps_the_first_package_of_the_code() -> None:
    state = Registry()
    assert state.first_package("code", "gcs://one.zip") == "gcs://one.zip"
    assert state.first_package("code", "gcs://two.zip") == "gcs://one.zip"
    assert state.first_package("other", "gcs://two.zip") == "gcs://two.zip"


class Call:
    def __init__(self, method: Any) -> None:
        self.remote = method


@pytest.mark.parametrize(
    ("first", "stored", "expected"),
    [
        ("gcs://one.zip", {"gcs://one.zip"}, "gcs://one.zip"),
        ("gcs://one.zip", set(), "gcs://two.zip"),
        ("s3://code/one.zip", set(), "s3://code/one.zip"),
        ("gcs://two.zip", set(), "gcs://two.zip"),
    ],
)
def test_package_that_ray_deleted_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch, first: str, stored: set[str], expected: str
) -> None:
    state = Registry()
    state.first_package("code", first)
    actor = SimpleNamespace(ask=Call(lambda data: ask(state, data)))
    monkeypatch.setattr(client, "_actor", lambda fleet: actor)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(internal_kv, "_internal_kv_exists", lambda uri: uri in stored)
    assert client.first_package("demo", "code", "gcs://two.zip") == expected
    assert client.first_package("demo", "code", "gcs://two.zip") == expected


def test_replicas_run_from_the_given_package() -> None:
    gateway: Any = application(FleetConfig(), working_dir="gcs://one.zip")._bound_deployment
    for deployment in (gateway, gateway.init_args[1]._bound_deployment):
        assert deployment.ray_actor_options["runtime_env"]["working_dir"] == "gcs://one.zip"
    plain: Any = application(FleetConfig())._bound_deployment
    assert "working_dir" not in plain.ray_actor_options["runtime_env"]


def test_missing_file_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["/nowhere/fleet.yaml"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("qwenfleet: /nowhere/fleet.yaml")
    assert error.count("\n") == 1


class Driver:
    """Stands in for the two calls that make this process a driver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_joined = False
        monkeypatch.setattr(ray, "init", self.init)
        monkeypatch.setattr(ray, "shutdown", self.shutdown)

    def init(self, **_: Any) -> None:
        self.is_joined = True

    def shutdown(self) -> None:
        self.is_joined = False


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (GetTimeoutError("the registry is silent"), "deployment: the registry is silent. Run"),
        (RayServeException("the controller died."), "deployment: the controller died. Run"),
        (ValueError(""), "deployment: ValueError. Run"),
        (TimeoutError("no proxy after 60s."), "deployment: no proxy after 60s. Run"),
        (
            RayTaskError("f", "Traceback:\n  File 1\nKeyError: 'x'", KeyError("x")),
            "deployment: KeyError: 'x'. Run",
        ),
    ],
)
@pytest.mark.parametrize("options", [[], ["--stop"]])
def test_ray_failure_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    sentence: str,
    options: list[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    driver = Driver(monkeypatch)
    monkeypatch.setattr(ray_serve, "start", fail)
    monkeypatch.setattr(deploy, "_applications", fail)
    file = tmp_path / "fleet.yaml"
    file.write_text("models: [{id: smollm2-135m-instruct}]\n")
    assert command.main([str(file), *options]) == 1
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.startswith("qwenfleet: Ray rejected the deployment")
    assert printed.count("\n") == 1
    assert not driver.is_joined


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionError("no Ray"), "this process does not run in a Ray cluster. Run it with"),
        (Exception("The node timed out."), "as a driver: The node timed out. Run this again"),
    ],
)
def test_ray_that_does_not_take_the_job_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    sentence: str,
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    file = tmp_path / "fleet.yaml"
    file.write_text("models: [{id: smollm2-135m-instruct}]\n")
    assert command.main([str(file)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("qwenfleet: ")
    assert sentence in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(("polls", "timeout", "status"), [(3, "60", 0), (10**9, "0.05", 1)])
def test_fleet_that_is_removed_has_time_to_finish_its_requests(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    polls: int,
    timeout: str,
    status: int,
) -> None:
    left = [polls]
    ended: list[str] = []

    def applications() -> list[str]:
        left[0] -= 1
        return ["qwenfleet"] if left[0] > 0 else []

    Driver(monkeypatch)
    monkeypatch.setattr(deploy, "_applications", applications)
    monkeypatch.setattr(deploy, "POLL_S", 0.0)
    monkeypatch.setattr(ray_serve, "delete", lambda name, _blocking: None)
    monkeypatch.setattr(client, "end", ended.append)
    file = tmp_path / "fleet.yaml"
    file.write_text("models: [{id: smollm2-135m-instruct}]\n")
    assert command.main([str(file), "--stop", "--timeout", timeout]) == status
    assert ended == ["qwenfleet"] * (status == 0)
    printed = capsys.readouterr()
    assert ("is removed" in printed.out) is (status == 0)
    assert ("still finishes requests" in printed.err) is (status == 1)
