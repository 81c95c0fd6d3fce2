"""Tests that servers are waited for until ready, and end with all their processes."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwenfleet.cluster.config import load
from qwenfleet.cluster.errors import BenchmarkError
from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.loadtest import scaling, servers
from qwenfleet.loadtest.servers import Server


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Any:
    """`servers.running` for completions_server.py with these options."""

    @contextmanager
    def run(*options: str, ready: Any = "/health") -> Iterator[Server]:
        (port,) = free_ports(1, "127.0.0.1")
        server = Server("fake", f"http://127.0.0.1:{port}")
        command = [sys.executable, str(program), str(port), *options]
        with servers.running(server, command, {}, tmp_path, ready=ready):
            yield server

    return run


def pid_in(log: Path) -> int:
    return int(log.read_text().split("up, pid ")[1])


def test_server_is_yielded_when_ready_and_ended_afterwards(run: Any, tmp_path: Path) -> None:
    started_at = time.monotonic()
    with run("--ready-after-s", "0.7") as server:
        assert time.monotonic() - started_at >= 0.7
        assert servers.answers(f"{server.url}/health")
        pid = pid_in(tmp_path / "fake.log")
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


def test_a_server_may_be_ready_by_another_sign(run: Any, tmp_path: Path) -> None:
    sign = tmp_path / "ready"
    looks = []

    def is_ready() -> bool:
        looks.append(sign.exists())
        sign.touch()
        return looks[-1]

    with run(ready=is_ready):
        assert looks == [False, True]


def test_a_server_that_ends_is_an_error_that_names_its_log(run: Any, tmp_path: Path) -> None:
    log = tmp_path / "fake.log"
    with pytest.raises(BenchmarkError) as caught, run("--exit", "3"):
        pytest.fail("it is not ready")
    assert str(caught.value) == f"fake ended with status 3. See {log}."
    assert "no memory for the model" in log.read_text()


def test_a_server_that_does_not_answer_in_time_is_an_error_and_is_stopped(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "START_TIMEOUT_S", 1)
    log = tmp_path / "fake.log"
    before = psutil.Process().children()
    with (
        pytest.raises(BenchmarkError, match=rf"fake did not answer within 1 s\. See {log}\."),
        run(ready=lambda: False),
    ):
        pytest.fail("it is not ready")
    assert psutil.Process().children() == before


def test_an_error_of_the_benchmark_stops_the_server_too(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run():
        raise ZeroDivisionError
    assert not psutil.pid_exists(pid_in(tmp_path / "fake.log"))


STUBBORN = """
import json, os, sys, time
from pathlib import Path
import psutil
from qwenfleet.loadtest import process_tree, servers

process_tree.adopt_orphans()
servers.STOP_TIMEOUT_S = servers.GRACE_S = 0.3
url = f"http://127.0.0.1:{sys.argv[2]}"
bystander = psutil.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
with servers.running(
    servers.Server("fake", url), [sys.executable, *sys.argv[1:]], {}, Path(), ready="/health"
):
    family = psutil.Process().children(recursive=True)
left = psutil.Process().children(recursive=True)
bystander.kill()
print(json.dumps({"family": len(family), "left": [p.pid for p in left], "spared": bystander.pid}))
"""


@pytest.mark.parametrize("options", [["--burn"], ["--burn", "--stubborn"]])
def test_only_leftovers_of_a_server_are_killed(
    python_says: Any, program: Path, options: list[str]
) -> None:
    (port,) = free_ports(1, "127.0.0.1")
    reported = python_says(STUBBORN, program, port, *options)
    assert reported["family"] == 3, "the server, its child and the bystander"
    assert reported["left"] == [reported["spared"]]


def test_only_a_200_is_an_answer(run: Any) -> None:
    with run() as server:
        assert servers.answers(f"{server.url}/health")
        assert not servers.answers(f"{server.url}/nothing")
    assert not servers.answers(f"{server.url}/health")


PROXY = """
import os, sys
os.environ |= {"http_proxy": sys.argv[2], "no_proxy": ""}
from qwenfleet.loadtest import servers
print("true" if servers.answers(sys.argv[1]) else "false")
"""
"""An interpreter reads the environment's proxies once."""


def test_a_proxy_of_the_environment_is_not_asked(python_says: Any, server: Any) -> None:
    (nobody,) = free_ports(1, "127.0.0.1")
    assert python_says(PROXY, f"{server.url}/health", f"http://127.0.0.1:{nobody}") is True


@pytest.mark.parametrize(
    "reported", [b"", b"+OK ready\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000]
)
def test_non_http_reply_is_not_an_answer(reported: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reported)

        thread = threading.Thread(target=reply)
        thread.start()
        assert not servers.answers(f"http://127.0.0.1:{listener.getsockname()[1]}/health")
        thread.join()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would be started, without starting it."""
    started: list[dict[str, Any]] = []

    @contextmanager
    def running(
        server: Server,
        command: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        *,
        ready: str,
    ) -> Iterator[None]:
        started.append({"url": server.url, "command": command, "ready": ready, **environment})
        yield

    monkeypatch.setattr(servers, "running", running)
    return started


def test_the_fleet_is_one_gateway_and_one_engine_of_a_valid_configuration(
    started: list[dict[str, Any]], tmp_path: Path
) -> None:
    with servers.fleet(tmp_path) as server:
        assert server.name == "fleet"
    config = load.load(started[0]["command"][-1])
    (model,) = config.models
    assert started[0]["command"][-4:-1] == ["qwenfleet.cli", "serve", "--config"]
    assert started[0]["ready"] == "/health/ready"
    assert Path(started[0]["XDG_STATE_HOME"]).is_relative_to(tmp_path)
    assert (config.gateway.replicas, model.replicas.min) == (1, 1)
    assert server.url == f"http://{config.gateway.host}:{config.gateway.port}"


def test_vllm_and_the_fleet_have_the_same_model_and_memory(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with servers.fleet(tmp_path), servers.vllm(tmp_path) as server:
        pass
    (model,) = load.load(started[0]["command"][-1]).models
    command = started[1]["command"]
    options = dict(zip(command[3::2], command[4::2], strict=False))
    assert options["--served-model-name"] == model.id
    assert Path(options["--model"]).is_dir()
    assert int(options["--max-model-len"]) == model.max_model_len
    assert model.kv_cache_gib is not None
    assert int(options["--kv-cache-memory-bytes"]) == model.kv_cache_gib * 2**30
    assert server.url == f"http://{options['--host']}:{options['--port']}"
    assert model.engine_args == {"enforce_eager": False}


def test_vllm_as_it_comes_differs_only_in_its_environment(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with servers.vllm(tmp_path), servers.vllm_as_it_comes(tmp_path) as server:
        assert server.name == "vllm as it comes"
    set_, plain = started
    port = set_["command"].index("--port") + 1
    for one in started:
        one["command"].pop(port)
    assert set_.pop("command") == plain.pop("command")
    assert servers.ENGINE_ENVIRONMENT.items() <= set_.items()
    assert set(plain) == {"url", "ready", "HF_HUB_OFFLINE"}


@pytest.mark.parametrize("gateways", scaling.GATEWAYS)
def test_the_fleets_of_the_scaling_benchmark_have_valid_configurations(
    started: list[dict[str, Any]], tmp_path: Path, gateways: int
) -> None:
    with servers.configured_fleet("fleet", tmp_path, scaling._config(gateways)) as server:
        pass
    config = load.load(started[0]["command"][-1])
    (model,) = config.models
    assert config.gateway.replicas == gateways
    assert server.url.endswith(f":{config.gateway.port}")
    assert (model.engine, model.replicas.min) == ("scripted", scaling.ENGINES)
    assert model.script is not None
    assert model.script.num_tokens == scaling.LOAD.max_tokens
    assert model.script.step_s == scaling.STEP_S


def test_engine_environment_matches_that_of_a_fleet() -> None:
    given = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert servers.ENGINE_ENVIRONMENT.items() >= given.items()
    cores = len(os.sched_getaffinity(0))
    assert int(servers.ENGINE_ENVIRONMENT["OMP_NUM_THREADS"]) == max(1, cores - 1)
