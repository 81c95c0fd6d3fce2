"""Kills the parts of a fleet other than engines and gateways, and reads what is reported."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from qwenfleet.cluster.local.ports import check_port
from qwenfleet.deployments.operations.parts import GCS, RAYLET, REGISTRY, title_of
from qwenfleet.deployments.operations.processes import of_fleet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

FLEET = """
name: parts
models:
  - id: scripted
    source: tiny-qwen3-moe
    engine: scripted
    max_model_len: 4096
    replicas: {min: 1}
    script: {num_tokens: 3000, step_s: 0.02, tokens: [104, 105, 32]}
gateway: {replicas: 1, port: {port}, keep_alive_s: 1}
"""
PATIENCE_S = 60
STATUS_S = 5.0
"""`status` answers within this, apart from the start of its own process on a busy machine."""


class Parts:
    """The processes of one fleet."""

    def __init__(self, fleet: Any, directory: Path) -> None:
        state = directory / "state" / "qwenfleet"
        self.token = state / f"{fleet.process.pid}.token"
        self._fleet = fleet
        self._family = psutil.Process(fleet.process.pid).children(recursive=True)

    def left(self) -> list[str]:
        """Return the names of the processes that still run."""
        return list(filter(None, map(title_of, {*self._family, *of_fleet(self.token)})))

    def part(self, title: str) -> psutil.Process:
        """Return the process of that name or title; of several, the youngest."""
        found = [one for one in of_fleet(self.token) if title_of(one) == title]
        assert found, f"{title} does not run"
        return max(found, key=lambda one: one.create_time())

    def ask(self) -> str:
        """Return what happened to a request; empty if it was answered."""
        body = {"model": "scripted", "prompt": "a", "max_tokens": 3}
        try:
            answer = httpx.post(f"{self._fleet.url}/v1/completions", json=body, timeout=10)
        except httpx.TransportError as error:
            return repr(error)
        return "" if answer.status_code == 200 else answer.text

    def is_answered(self) -> bool:
        return not self.ask()

    def log(self) -> str:
        text: str = self._fleet.log.read_text()
        return text


def test_what_can_be_restarted_is_and_a_dead_raylet_ends_the_fleet(
    run_fleet: Any, expect: Callable[..., None], tmp_path: Path
) -> None:
    with run_fleet(FLEET, 1, tmp_path, status=1) as fleet:
        parts = Parts(fleet, tmp_path)
        _kill_haproxy(parts, expect)
        _kill_registry(fleet, parts, expect)
        raylet = parts.part(RAYLET.title)
        raylet.kill()
        fleet.process.wait(timeout=PATIENCE_S)
        assert f"Ray's raylet (process {raylet.pid}) died" in parts.log()
        assert parts.log().count("stopped") == 1
        _expect_nothing_left(fleet, parts, expect)


def _kill_haproxy(parts: Parts, expect: Callable[..., None]) -> None:
    manager = parts.part("ray::HAProxyManager")
    parts.part("haproxy").kill()
    killed_at = time.monotonic()
    expect(parts.is_answered, PATIENCE_S, "HAProxy answers again")
    print(f"HAProxy: a request was answered {time.monotonic() - killed_at:.2f} s after its end")
    expect(lambda: "HAProxy died and runs again after" in parts.log(), PATIENCE_S, "a sentence")
    expect(lambda: not manager.is_running(), PATIENCE_S, "its manager is replaced")

    def is_replaced() -> bool:
        assert parts.ask() == "", "the change of the manager must cut nothing"
        return any(title_of(one) == "ray::HAProxyManager" for one in of_fleet(parts.token))

    expect(is_replaced, PATIENCE_S, "a new manager runs")
    until = time.monotonic() + 5
    while time.monotonic() < until:  # its first HAProxy takes over meanwhile
        assert parts.ask() == "", "a new manager's HAProxy knows the gateways"


def _kill_registry(fleet: Any, parts: Parts, expect: Callable[..., None]) -> None:
    registry = parts.part(REGISTRY.title)
    registry.kill()
    assert parts.is_answered()
    status = fleet.status()
    assert [engine["state"] for engine in status["engines"]] == ["ready"] or status["problems"]
    sentence = f"the registry (process {registry.pid}) died"
    expect(lambda: sentence in parts.log(), PATIENCE_S, sentence)
    expect(lambda: "the registry runs again" in parts.log(), PATIENCE_S, "it runs again")
    fleet.expect_ready("scripted", 1)
    assert "stopped" not in parts.log().partition(sentence)[2]


def test_a_frozen_gcs_is_reported_and_a_killed_launcher_leaves_nothing(
    run_fleet: Any, expect: Callable[..., None], tmp_path: Path
) -> None:
    with run_fleet(FLEET, 1, tmp_path, status=-9) as fleet:
        parts = Parts(fleet, tmp_path)
        gcs = parts.part(GCS.title)
        gcs.suspend()
        asked_at = time.monotonic()
        answer = fleet.cli("status", "--json")
        print(f"status with a frozen GCS: {time.monotonic() - asked_at:.2f} s")
        assert answer.returncode == 1
        status = json.loads(answer.stdout)
        assert status["http"] == "ready"
        assert "Ray does not answer" in " ".join(status["problems"])
        assert parts.is_answered()
        gcs.resume()
        fleet.process.kill()
        fleet.process.wait()
        _expect_nothing_left(fleet, parts, expect)


def _expect_nothing_left(fleet: Any, parts: Parts, expect: Callable[..., None]) -> None:
    expect(lambda: not parts.left(), PATIENCE_S, f"every process ends: {parts.left()}")
    host, _, port = fleet.url.removeprefix("http://").partition(":")
    check_port(host, int(port))
