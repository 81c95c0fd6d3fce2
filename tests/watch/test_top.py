"""`qwenfleet watch` with a real Prometheus and a page of metrics in place of a fleet."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cli import watch
from qwenfleet.cli.top import local
from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.live import prometheus, prometheus_files
from qwenfleet.cluster.live import watcher as watcher_module
from qwenfleet.cluster.live.prometheus import Prometheus
from qwenfleet.cluster.live.reading import Reader
from qwenfleet.cluster.local import fleets
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.cluster.local.ports import free_ports

PATIENCE_S = 40.0
RULES = """
groups:
  - name: test
    rules:
      - alert: QwenfleetMoving
        expr: ray_qwenfleet_moving_requests > 1
        annotations:
          summary: "streams of {{ $labels.model }} move"
          runbook_url: RUNBOOKS_URL/QwenfleetMoving.md
      - alert: QwenfleetLater
        expr: ray_qwenfleet_moving_requests > 1
        for: 1h
"""

pytestmark = [
    pytest.mark.watch,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def fleet(metrics_page: Any, metrics_text: Any) -> Iterator[RunningFleet]:
    """A fleet whose model has the most awkward name that a label can have."""
    stopped = threading.Event()

    def report() -> None:
        while not stopped.wait(0.2):
            text = metrics_text.gateway(time.time(), model='odd "name" \\ {x}|$(y) é [red]')
            metrics_page.say(text)

    thread = threading.Thread(target=report)
    thread.start()
    yield running_at(metrics_page.port)
    stopped.set()
    thread.join()


def running_at(port: int) -> RunningFleet:
    return RunningFleet(os.getpid(), 0.0, "demo", "http://127.0.0.1:8000", "", "", port, [])


def wait_for(server: Prometheus, printed: str) -> list[str]:
    give_up_at = time.monotonic() + PATIENCE_S
    watcher = watcher_module.Watcher(server)
    while True:
        texts = [notice.text for notice in watcher.notices(time.time())]
        if any(printed in text for text in texts):
            return texts
        assert time.monotonic() < give_up_at, texts
        time.sleep(0.2)


def begin(directory: Path, find: Callable[..., RunningFleet]) -> watcher_module.FleetFinder:
    prometheus_files.write(directory, RULES)
    finder = watcher_module.FleetFinder(directory, find)
    finder.find(None, None)
    return finder


def test_alerts_scrapes_and_the_exit_of_prometheus_are_shown(
    tmp_path: Path, fleet: RunningFleet, metrics_page: Any
) -> None:
    begin(tmp_path, lambda port, name: fleet)
    (port,) = free_ports(1, "127.0.0.1")
    with prometheus.running("prometheus", tmp_path, port, "1h") as server:
        texts = wait_for(server, "firing: QwenfleetMoving")
        moving = (
            'firing: QwenfleetMoving: streams of odd "name" \\ {x}|$(y) é [red] move; runbook: '
        )
        assert any(text.startswith(moving) for text in texts)
        assert any(text.startswith("pending: QwenfleetLater (") for text in texts)
        wait_for(server, f"Prometheus at {server.url} scraped the fleet")

        metrics_page.status = 403  # as if something blocked the port
        wait_for(server, "server returned HTTP status 403")

        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(20)
        wait_for(server, "Prometheus exited (status -9")
        metrics_page.status = 200
        reader = Reader(lambda: local(fleet))
        assert reader.read(time.monotonic, time.time).view is not None  # top goes on


def test_a_fleet_that_restarts_on_another_port_is_scraped_without_a_restart(
    tmp_path: Path, fleet: RunningFleet
) -> None:
    (unused,) = free_ports(1, "127.0.0.1")
    ports = iter([unused, fleet.metrics_port])
    finder = begin(tmp_path, lambda port, name: running_at(next(ports)))
    (port,) = free_ports(1, "127.0.0.1")
    with prometheus.running("prometheus", tmp_path, port, "1h") as server:
        wait_for(server, "connection refused")
        finder.find(None, None)
        wait_for(server, "scraped the fleet")
        assert server.exit_status is None


def test_rules_that_prometheus_rejects_are_one_sentence(tmp_path: Path) -> None:
    prometheus_files.write(tmp_path, "groups: [{name: a, rules: [{record: b, expr: 'sum('}]}]")
    prometheus_files.point_to(tmp_path, 7)
    (port,) = free_ports(1, "127.0.0.1")
    with (
        pytest.raises(MachineError, match="Prometheus did not start: "),
        prometheus.running("prometheus", tmp_path, port, "1h"),
    ):
        raise AssertionError("it started")


def test_without_a_terminal_problems_and_alerts_are_lines_until_a_signal(
    fleet: RunningFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1, "127.0.0.1")
    options = argparse.Namespace(
        port=None, fleet=None, interval=0.5, prometheus="prometheus", listen=port, retention="1h"
    )
    signaller = threading.Timer(12, os.kill, (os.getpid(), signal.SIGTERM))
    signaller.start()
    try:
        assert watch.watch(options, lambda port, name: fleet) == 0
    finally:
        signaller.cancel()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"Prometheus answers at http://127.0.0.1:{port}")
    assert all(" (page): " in line or " (ticket): " in line for line in lines)
    assert len(lines) == len({line[9:] for line in lines})
    assert list(fleets.state_directory().iterdir()) == []
    assert watch.free_port(port) == (port, [])  # the port is free again
