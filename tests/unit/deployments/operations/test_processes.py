"""Processes of a fleet, told by the token path that they inherit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenfleet.deployments.operations import processes

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The token of a launcher whose process is gone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    directory = tmp_path / "qwenfleet"
    directory.mkdir()
    for suffix in (".token", ".log", ".haproxy"):
        (directory / f"{gone.pid}{suffix}").touch()
    return directory / f"{gone.pid}.token"


@pytest.fixture
def orphan(token: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"RAY_AUTH_TOKEN_PATH": str(token)}
    with subprocess.Popen(SLEEPER, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_is_known_by_its_fleets_token(token: Path, orphan: subprocess.Popen[str]) -> None:
    assert [process.pid for process in processes.of_fleet(token)] == [orphan.pid]
    assert processes.of_fleet(token.with_name("other.token")) == []


def test_what_does_not_end_by_itself_is_ended(
    token: Path, orphan: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    processes.end_fleet(token)
    assert processes.of_fleet(token) == []


def test_the_next_launcher_sweeps_up_after_a_killed_one(
    token: Path, orphan: subprocess.Popen[str]
) -> None:
    processes.sweep()
    assert orphan.wait(timeout=10) != 0
    assert list(token.parent.iterdir()) == []


def test_a_living_fleet_is_not_swept(token: Path, orphan: subprocess.Popen[str]) -> None:
    living = token.with_name(f"{os.getpid()}.token")
    living.touch()
    processes.sweep()
    assert living.exists()
