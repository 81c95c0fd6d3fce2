"""Tests the keeper with a real HAProxy, under programs that start it as Ray and Serve do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.deployments import haproxy_keeper
from qwenfleet.deployments.haproxy import journal, write_launcher
from qwenfleet.deployments.haproxy_keeper import POLL_S

MANAGER = """
import subprocess, sys
haproxy = subprocess.Popen(sys.argv[1:])
print(haproxy.pid, flush=True)
for line in sys.stdin:  # as Serve's manager does when it is shut down
    haproxy.kill()
    break
haproxy.wait()
sys.stdin.read()
"""
RAYLET = """
import subprocess, sys
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
sys.stdin.read()
"""


class Node:
    """One node: a program in the raylet's place, one in the manager's, and HAProxy."""

    def __init__(self, directory: Path) -> None:
        self.launcher = directory / "haproxy"
        write_launcher(self.launcher)
        self.config = directory / "haproxy.cfg"
        self.socket = directory / "admin.sock"
        self.port, *_ = free_ports(1, "127.0.0.1")
        self._programs: list[subprocess.Popen[str]] = []

    def write_config(
        self, status: int, *, gateways: bool = False, has_probes: bool = False
    ) -> None:
        """Write a configuration that answers with `status`, also to health probes."""
        server = "server gw 127.0.0.1:9 check" * gateways
        probes = (
            "  acl healthcheck path -i /-/healthz\n"
            "  http-request set-log-level debug if healthcheck\n"
        )
        self.config.write_text(
            f"global\n  stats socket {self.socket} level admin expose-fd listeners\n"
            "defaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n"
            f"  timeout connect 5s\nfrontend f\n  bind 127.0.0.1:{self.port}\n"
            f"{probes * has_probes}"
            f"  http-request return status {status}\nbackend b\n  {server}\n"
        )

    def start(self, *arguments: str) -> tuple[psutil.Process, subprocess.Popen[str]]:
        """Start a manager under a raylet; returns HAProxy and the raylet."""
        command = [sys.executable, "-c", RAYLET, MANAGER, str(self.launcher)]
        raylet = subprocess.Popen(
            [*command, "-db", "-f", str(self.config), "-dR", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._programs.append(raylet)
        assert raylet.stdout is not None
        return psutil.Process(int(raylet.stdout.readline())), raylet

    def expect_watched(self, haproxy: psutil.Process) -> None:
        """Wait until HAProxy has answered its watcher, too: it accepts a connection that is not
        ours. One before it that still listens shares the socket, and may answer instead."""
        ours = 0

        def has_answered_another() -> bool:
            nonlocal ours
            pid, accepted = self._connections()
            ours += pid == haproxy.pid
            return pid == haproxy.pid and accepted > ours

        expect(has_answered_another, "HAProxy answers its watcher")
        time.sleep(POLL_S)  # the watcher reads the answer

    def _connections(self) -> tuple[int, int]:
        """Return the pid of the HAProxy that answers and how many connections it has accepted, with
        this one; zeros if none answers."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.socket))
                connection.sendall(b"show info\n")
                with connection.makefile() as lines:
                    found = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
            return int(found["Pid"]), int(found["CumConns"])
        except (OSError, KeyError):
            return 0, 0

    def status(self, path: str = "/") -> int:
        """Return the HTTP status that the port answers with now; 0 for none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return int(connection.recv(64).split()[1])
        except (OSError, IndexError):
            return 0

    def processes(self) -> list[psutil.Process]:
        """Return every HAProxy and watcher of this node."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            is_ours = str(self.launcher.parent) in " ".join(command) and "-c" not in command
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def end(self) -> None:
        for program in self._programs:
            for process in psutil.Process(program.pid).children(recursive=True):
                process.kill()
            program.kill()
            program.communicate()
        for process in self.processes():
            process.kill()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    node.write_config(200)
    yield node
    node.end()


def expect(claim: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.05)


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def manager_of(haproxy: psutil.Process) -> psutil.Process:
    manager = haproxy.parent()
    assert manager is not None
    return manager


def test_killed_haproxy_runs_again_and_its_manager_is_replaced(node: Node) -> None:
    haproxy, _ = node.start()
    node.expect_watched(haproxy)
    manager = manager_of(haproxy)
    haproxy.kill()
    expect(lambda: node.status() == 200, "HAProxy answers again")
    expect(lambda: not manager.is_running(), "the manager is ended, for Serve to start another")
    (entry,) = map(json.loads, journal(node.launcher).read_text().splitlines())
    assert entry["down_s"] < 10
    assert node.status() == 200


def test_new_managers_haproxy_takes_over_with_the_last_gateways(node: Node) -> None:
    node.write_config(200, gateways=True)
    first, _ = node.start()
    expect(lambda: node.status() == 200, "HAProxy answers")
    manager_of(first).kill()
    node.write_config(404)  # a new manager knows no gateway
    second, _ = node.start()
    expect(lambda: not first.is_running(), "the HAProxy without a manager ends")
    assert node.status() == 200
    assert second.is_running()


def test_haproxy_answers_health_probes_for_its_own_node(node: Node) -> None:
    """Also the one that the keeper starts again."""
    node.write_config(200, has_probes=True)
    haproxy, _ = node.start()
    node.expect_watched(haproxy)
    assert [node.status(), node.status("/-/healthz")] == [200, 503]
    haproxy.kill()
    expect(lambda: node.status() == 200, "HAProxy answers again")
    assert node.status("/health/ready") == 503


def test_haproxy_that_its_manager_stopped_stays_stopped(node: Node) -> None:
    haproxy, _ = node.start()
    node.expect_watched(haproxy)
    manager = manager_of(haproxy)
    haproxy.kill()
    manager.kill()
    expect(lambda: not node.processes(), "the watcher ends too")
    assert node.status() == 0


def test_manager_that_ends_late_takes_the_new_haproxy_along(node: Node) -> None:
    haproxy, _ = node.start()
    node.expect_watched(haproxy)
    manager = manager_of(haproxy)
    haproxy.kill()
    expect(lambda: journal(node.launcher).exists(), "HAProxy is started again")
    manager.kill()
    expect(lambda: not node.processes(), "HAProxy and the watcher end")


def test_haproxy_ends_with_its_raylet(node: Node) -> None:
    _, raylet = node.start()
    expect(lambda: node.status() == 200, "HAProxy answers")
    os.kill(raylet.pid, signal.SIGKILL)
    expect(lambda: not node.processes(), "HAProxy does not answer for a dead node")


def test_haproxy_before_it_that_still_listens_is_replaced_too(node: Node) -> None:
    """The signal by which a reload stops it can be lost."""
    before, _ = node.start()
    node.expect_watched(before)
    nobody = str(2**22)
    haproxy, _ = node.start("-sf", nobody, "-x", str(node.socket))
    expect(lambda: has_ended(before), "the one before it ends")
    expect(lambda: len(node.processes()) == 2, "one HAProxy and one watcher run")
    haproxy.kill()
    expect(lambda: journal(node.launcher).exists(), "HAProxy runs again")
    assert node.status() == 200
    assert len(journal(node.launcher).read_text().splitlines()) == 1


def test_reload_that_meets_a_dead_haproxy_leaves_one_that_runs(node: Node) -> None:
    """It gets no sockets and fails alone, or takes over from the one that was started again."""
    haproxy, _ = node.start()
    node.expect_watched(haproxy)
    haproxy.kill()
    node.start("-sf", str(haproxy.pid), "-x", str(node.socket))
    expect(lambda: node.status() == 200, "HAProxy answers again")
    expect(lambda: len(node.processes()) == 2, "one HAProxy and one watcher run")
    assert node.status() == 200


def test_failed_reload_leaves_the_haproxy_that_runs(node: Node) -> None:
    first, _ = node.start()
    expect(lambda: node.status() == 200, "HAProxy answers")
    node.write_config(200)
    node.config.write_text(node.config.read_text() + "nonsense\n")
    second, _ = node.start()
    expect(lambda: has_ended(second), "it fails")
    expect(lambda: len(node.processes()) == 2, "only HAProxy and its own watcher run")
    assert first.is_running()
    assert node.status() == 200
    assert not journal(node.launcher).exists()


def test_haproxy_runs_although_its_keeper_cannot(node: Node) -> None:
    """Such as on a full disk; a keeper that fails must not cost the service."""
    node.write_config(200, gateways=True)
    node.config.with_suffix(".kept").mkdir()  # nothing can be written there
    haproxy, _ = node.start()
    expect(lambda: node.status() == 200, "HAProxy answers")
    assert not haproxy.children()


def test_a_restart_signals_no_process_of_the_past() -> None:
    arguments = ["-db", "-f", "c", "-dR", "-sf", "12", "34", "-x", "socket"]
    assert haproxy_keeper._without_reload(arguments) == ["-db", "-f", "c", "-dR"]
