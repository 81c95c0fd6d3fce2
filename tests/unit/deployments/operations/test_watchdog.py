"""Tests the watchdog with a launcher that is killed, and one that ends by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qwenfleet.deployments.operations import processes

LAUNCHER = """
import os, subprocess, sys
from pathlib import Path
from qwenfleet.deployments.operations.watchdog import watched
with watched(Path(os.environ["RAY_AUTH_TOKEN_PATH"])):
    quiet = {"start_new_session": True, "stdout": subprocess.DEVNULL}
    part = subprocess.Popen(["sleep", "60"], ENVIRONMENT **quiet)
    print(part.pid, flush=True)
    sys.stdin.read(1)
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    token = tmp_path / "7.token"
    for suffix in (".token", ".log", ".haproxy", ".restarts", ".json"):
        token.with_suffix(suffix).touch()
    return token


def start(token: Path, environment: str = "") -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a launcher; returns it and a part of its fleet."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER.replace("ENVIRONMENT", environment)],
        env=os.environ | {"RAY_AUTH_TOKEN_PATH": str(token)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    return launcher, psutil.Process(int(launcher.stdout.readline()))


def test_killed_launcher_takes_its_fleet_and_files_along(token: Path) -> None:
    launcher, _ = start(token)
    launcher.kill()
    launcher.communicate()
    give_up_at = time.monotonic() + 20
    while processes.of_fleet(token) or any(token.parent.iterdir()):
        assert time.monotonic() < give_up_at, "nothing is left"
        time.sleep(0.05)


def test_part_without_the_token_is_killed_too(token: Path) -> None:
    """Ray's agents overwrite their own environment."""
    launcher, part = start(token, 'env={"PATH": os.environ["PATH"]},')
    watchdog = next(c for c in psutil.Process(launcher.pid).children() if c.pid != part.pid)
    seen = watchdog.num_ctx_switches().voluntary + 5
    give_up_at = time.monotonic() + 40
    while watchdog.num_ctx_switches().voluntary < seen:  # it has looked
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    launcher.kill()
    launcher.communicate()
    while part.is_running():
        assert time.monotonic() < give_up_at, "it ends"
        time.sleep(0.05)


def test_launcher_that_ends_by_itself_leaves_no_watchdog(token: Path) -> None:
    launcher, part = start(token)
    (watchdog,) = (
        child for child in psutil.Process(launcher.pid).children() if child.pid != part.pid
    )
    launcher.communicate(input="x", timeout=30)
    assert launcher.returncode == 0
    assert not watchdog.is_running()
    assert token.exists(), "its files are the launcher's to remove"
    part.kill()
