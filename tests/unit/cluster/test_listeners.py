"""Listeners of this machine, read for real."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qwenfleet.cluster import listeners, run_file
from qwenfleet.cluster.listeners import Listener
from qwenfleet.cluster.programs import NOBODY, Owner
from qwenfleet.cluster.run_file import RunningFleet


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def found(port: int, visitor: int = 0) -> list[Listener]:
    return [listener for listener in listeners.read(visitor).listeners if listener.port == port]


def test_a_listener_is_found_with_its_process_and_user() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        (listener,) = found(server.getsockname()[1])
    assert listener.pid == os.getpid()
    assert listener.user
    assert listener.is_local
    assert listener.owner == NOBODY
    assert listener.has_keys is None


def test_the_command_that_asks_is_left_out_where_it_is_a_visitor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert found(server.getsockname()[1], visitor=os.getpid()) == []


def test_a_fleets_listener_is_its_own_and_its_metrics_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        run_file.write(
            RunningFleet(
                pid=os.getpid(),
                started_at=run_file.own_start(),
                name="demo",
                url="http://127.0.0.1:1",
                ray_address="127.0.0.1:2",
                ray_token_path="/state/7.token",
                metrics_port=port,
                models=[],
                has_keys=True,
            )
        )
        (listener,) = found(port)
        own = listeners.read().own
    assert listener.owner == own == Owner("demo", os.getpid())
    assert listener.counters == "Ray's metrics"
    assert listener.has_keys


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.0.0.53", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_only_loopback_is_local(address: str, is_local: bool) -> None:
    assert Listener(address, 1).is_local is is_local


def test_the_ports_of_this_machine_are_tried() -> None:
    ports = listeners.read_ports()
    assert ports.port == 8000
    assert ports.range_refusal is None
    assert len(ports.ephemeral) > 0
