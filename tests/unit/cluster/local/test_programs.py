"""Owners of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qwenfleet.cluster.local import programs
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.cluster.local.programs import Owner, Program, owner

FLEET = RunningFleet(
    pid=100,
    started_at=1.0,
    name="demo",
    url="http://127.0.0.1:8000",
    ray_address="10.0.0.1:6379",
    ray_token_path="/state/100.token",
    metrics_port=9100,
    models=["coder"],
)
SESSION = "session_2026-11-22_17-26-45_445157_200"
KNOWN = {
    program.pid: program
    for program in (
        Program(1, 0, "init", "root"),
        Program(100, 1, "qwenfleet.cli", "ann"),
        Program(110, 100, "raylet", "ann", "session_2026-11-22_17-00-00_000001_100"),
        Program(111, 110, "DashboardAgent", "ann"),
        Program(120, 1, "haproxy", "ann", token_path="/state/100.token"),
        Program(200, 1, "train.py", "bob"),
        Program(210, 200, "gcs_server", "bob", SESSION),
        Program(300, 1, "sshd", "root"),
    )
}


@pytest.mark.parametrize("pid", [100, 110, 111, 120])
def test_a_fleets_process_is_recognized_by_its_ancestors_or_its_token(pid: int) -> None:
    assert owner(pid, KNOWN, [FLEET]) == Owner("demo", 100)


@pytest.mark.parametrize("pid", [200, 210])
def test_another_ray_cluster_is_recognized_by_session_and_its_driver_by_a_child(pid: int) -> None:
    assert owner(pid, KNOWN, [FLEET]) == Owner(session=SESSION)
    assert owner(pid, KNOWN, [FLEET]).is_ray


@pytest.mark.parametrize("pid", [1, 300, 999])
def test_other_processes_have_no_owner(pid: int) -> None:
    assert owner(pid, KNOWN, [FLEET]) == programs.NO_OWNER
    assert not owner(pid, KNOWN, [FLEET]).is_ray


def test_a_cycle_of_parents_does_not_hang() -> None:
    circle = {1: Program(1, 2, "a", "x"), 2: Program(2, 1, "b", "x")}
    assert owner(1, circle, []) == programs.NO_OWNER


def test_a_process_is_read_with_its_ancestors() -> None:
    known = programs.read([os.getpid()])
    me = known[os.getpid()]
    assert me.user == psutil.Process().username()
    assert me.parent in known


def test_a_process_that_has_ended_is_left_out() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert programs.read([ended.pid]) == {}


def test_session_token_and_auth_mode_of_a_ray_server_are_read(tmp_path: Path) -> None:
    script = tmp_path / "site-packages" / "ray" / "dashboard.py"
    script.parent.mkdir(parents=True)
    script.write_text("import time; print('up', flush=True); time.sleep(60)")
    environment = os.environ | {
        "RAY_AUTH_MODE": "TOKEN",
        "RAY_AUTH_TOKEN_PATH": "/state/7.token",
    }
    command = [sys.executable, str(script), f"--session-dir=/tmp/ray/{SESSION}"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        read = programs.read([process.pid])[process.pid]
        process.kill()
    assert (read.name, read.session) == ("dashboard.py", SESSION)
    assert (read.auth_mode, read.token_path) == ("token", "/state/7.token")


def test_a_program_that_only_opens_a_session_is_not_rays() -> None:
    code = "import time; print('up', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, f"/tmp/ray/{SESSION}/logs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        read = programs.read([process.pid])[process.pid]
        process.kill()
    assert read.session == ""


def test_addresses_of_ray_clusters_have_a_host_and_a_port() -> None:
    assert all(":" in address for address in programs.ray_addresses())
