"""`qwenfleet watch` as a command: its errors, its port, and its cleanup."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwenfleet.cli import watch
from qwenfleet.cluster.errors import ConfigError, FleetNotFound, MachineError
from qwenfleet.cluster.live import prometheus
from qwenfleet.cluster.local import fleets
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.cluster.local.ports import check_port


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def options(**fields: Any) -> argparse.Namespace:
    known = {"port": None, "fleet": None, "interval": 0.2, "prometheus": "prometheus"}
    known |= {"listen": 9090, "retention": "2h"}
    return argparse.Namespace(**(known | fields))


def fleet(metrics_port: int) -> RunningFleet:
    return RunningFleet(1, 0.0, "demo", "http://127.0.0.1:8000", "", "", metrics_port, ["coder"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"retention": "soon"},
            "--retention 'soon' is not a duration. Write it like 90m, 2h or 7d.",
        ),
        ({"retention": "0s"}, "--retention '0s' is not a duration"),
        ({"retention": ""}, "--retention '' is not a duration"),
        ({"listen": 0}, "--listen 0 is not a port"),
        ({"listen": 65536}, "--listen 65536 is not a port"),
    ],
)
def test_an_invalid_option_is_refused_with_one_sentence(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        watch.watch(options(**fields), lambda port, name: fleet(7))
    assert str(caught.value).startswith(sentence)


def test_without_prometheus_the_error_says_how_to_install_it() -> None:
    with pytest.raises(MachineError, match=r"no program 'no-such-prometheus'\. Install it"):
        watch.watch(options(prometheus="no-such-prometheus"), lambda port, name: fleet(7))


def test_without_a_fleet_nothing_is_started() -> None:
    def find(port: int | None, name: str | None) -> RunningFleet:
        raise FleetNotFound("you have no running fleet on this machine", "Start one.")

    with pytest.raises(FleetNotFound):
        watch.watch(options(prometheus=sys.executable), find)
    assert list(fleets.state_directory().iterdir()) == []


def test_another_program_in_place_of_prometheus_is_an_error_and_leaves_no_files() -> None:
    with pytest.raises(MachineError, match="Prometheus did not start: "):
        watch.watch(options(prometheus=sys.executable), lambda port, name: fleet(7))
    assert list(fleets.state_directory().iterdir()) == []


def test_another_port_is_used_if_the_wanted_one_is_in_use(metrics_page: Any) -> None:
    port, reported = watch.free_port(metrics_page.port)
    assert port != metrics_page.port
    check_port(prometheus.HOST, port)
    assert f"using port {port} for Prometheus" in reported[0]
    assert watch.free_port(port) == (port, [])


def test_files_and_prometheus_of_a_killed_run_are_removed() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = fleets.state_directory() / f"watch-{ended.pid}-abc"
    left.mkdir()
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=left)
    watch.sweep(fleets.state_directory())
    assert not psutil.pid_exists(orphan.pid)
    orphan.wait(20)
    assert not left.exists()
