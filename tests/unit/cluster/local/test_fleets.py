"""Files of running fleets: written by a fleet, and valid only while its process lives."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwenfleet.cluster.local import fleets
from qwenfleet.cluster.local.fleets import RunningFleet


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def fleet(**fields: Any) -> RunningFleet:
    """A fleet of this process."""
    return RunningFleet(
        **{
            "pid": os.getpid(),
            "started_at": fleets.own_start(),
            "name": "qwenfleet",
            "url": "http://127.0.0.1:8000",
            "ray_address": "127.0.0.1:6379",
            "ray_token_path": "/state/7.token",
            "metrics_port": 9000,
            "models": ["coder"],
            **fields,
        }
    )


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_running_fleet_is_found() -> None:
    path = fleets.write(fleet())
    assert fleets.running() == [fleet()]
    assert path.exists()


def test_no_fleet_is_found_if_none_ever_ran() -> None:
    assert fleets.running() == []


def test_only_this_user_can_read_the_state_directory(state_home: Path) -> None:
    directory = fleets.state_directory()
    assert directory == state_home / "qwenfleet"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_without_an_xdg_directory_the_state_is_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fleets.state_directory() == tmp_path / ".local" / "state" / "qwenfleet"


def test_the_file_of_a_dead_process_is_removed() -> None:
    path = fleets.write(fleet(pid=dead_pid()))
    assert fleets.running() == []
    assert not path.exists()


def test_a_killed_launchers_fleet_is_known_until_its_token_is_removed(tmp_path: Path) -> None:
    token = tmp_path / "7.token"
    token.touch()
    dead = fleet(pid=dead_pid(), ray_token_path=str(token))
    path = fleets.write(dead)
    assert fleets.running() == []
    assert fleets.killed() == [dead]
    token.unlink()
    assert fleets.killed() == []
    assert fleets.running() == []
    assert not path.exists()


def test_another_process_with_the_same_pid_is_ignored() -> None:
    path = fleets.write(fleet(started_at=fleets.own_start() - 3600))
    assert fleets.running() == []
    assert not path.exists()


def test_the_newest_fleet_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        newer = fleet(pid=process.pid, started_at=psutil.Process(process.pid).create_time())
        fleets.write(newer)
        fleets.write(fleet())
        assert fleets.running() == [newer, fleet()]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}', "7"])
def test_a_file_that_does_not_describe_a_fleet_is_skipped(text: str) -> None:
    (fleets.state_directory() / "1.json").write_text(text)
    fleets.write(fleet())
    assert fleets.running() == [fleet()]
