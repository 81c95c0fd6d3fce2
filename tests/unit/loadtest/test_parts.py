"""The parts of a fleet, found by title among the processes that carry its token."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qwenfleet.loadtest import parts
from qwenfleet.loadtest.parts import Part

SLEEP = "import sys, time; time.sleep(60)"


@pytest.mark.parametrize(
    ("title", "part"),
    [
        ("ray::ServeReplica:qwenfleet:gateway", Part.GATEWAY),
        ("ray::ServeReplica:qwenfleet:engine-0-fast", Part.ENGINE),
        ("VLLM::EngineCore", Part.CORE),
        ("VLLM::EngineCore_DP1", Part.CORE),
        ("haproxy", Part.HAPROXY),
        ("ray::ServeController", Part.CONTROLLER),
        ("ray::RegistryActor", Part.REGISTRY),
        ("gcs_server", Part.GCS),
        ("raylet", Part.RAYLET),
        ("ray::DashboardAgent", None),
        ("ray::HAProxyManager", None),
        ("VLLM::Worker_TP0", None),
        ("python", None),
        ("", None),
    ],
)
def test_a_title_tells_the_part(title: str, part: Part | None) -> None:
    assert parts.part_of(title) is part


def test_parts_are_of_one_fleet_and_the_oldest_comes_first(tmp_path: Path) -> None:
    token = tmp_path / "a.token"
    started = []
    try:
        for owner in (token, token, tmp_path / "another.token"):
            environment = os.environ | {"RAY_AUTH_TOKEN_PATH": str(owner)}
            command = ["ray::ServeReplica:x:gateway.handle_request", "-S", "-c", SLEEP]
            started.append(subprocess.Popen(command, executable=sys.executable, env=environment))
        found = parts.of_fleet(token)
        assert [process.pid for process in found[Part.GATEWAY]] == [p.pid for p in started[:2]]
        assert found[Part.ENGINE] == []
        assert parts.resident_bytes(token)[Part.GATEWAY] > 2**20
        parts.strike(found[Part.GATEWAY][0], signal.SIGTERM)
        assert started[0].wait(20) == -signal.SIGTERM
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_process_that_ended_cannot_be_struck() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended = psutil.Process(process.pid)
    process.wait()
    parts.strike(ended)
    assert not ended.is_running()
