"""Tests finding a fleet's processes by the token path that they inherit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qwenfleet.deployments.operations import processes

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the token of a launcher whose process has ended."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    launcher = subprocess.Popen([sys.executable, "-c", ""])
    launcher.wait()
    directory = tmp_path / "qwenfleet"
    directory.mkdir()
    for suffix in (".token", ".log", ".haproxy"):
        (directory / f"{launcher.pid}{suffix}").touch()
    return directory / f"{launcher.pid}.token"


@pytest.fixture
def orphan(token: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"RAY_AUTH_TOKEN_PATH": str(token)}
    with subprocess.Popen(SLEEPER, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_process_is_found_by_the_token_of_its_fleet(
    token: Path, orphan: subprocess.Popen[str]
) -> None:
    assert [process.pid for process in processes.of_fleet(token)] == [orphan.pid]
    assert processes.of_fleet(token.with_name("other.token")) == []


def test_process_that_does_not_end_is_killed(
    token: Path, orphan: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    processes.end_fleet(token)
    assert processes.of_fleet(token) == []


def test_next_launcher_cleans_up_after_a_killed_one(
    token: Path, orphan: subprocess.Popen[str]
) -> None:
    processes.sweep()
    assert not psutil.pid_exists(orphan.pid)
    assert list(token.parent.iterdir()) == []


def test_sweep_spares_a_running_fleet(token: Path, orphan: subprocess.Popen[str]) -> None:
    living = token.with_name(f"{os.getpid()}.token")
    living.touch()
    processes.sweep()
    assert living.exists()
