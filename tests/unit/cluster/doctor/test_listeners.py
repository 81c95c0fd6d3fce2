"""Real listeners of this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qwenfleet.cluster.config.fleet import GatewayConfig
from qwenfleet.cluster.doctor import listeners
from qwenfleet.cluster.doctor.listeners import Listener
from qwenfleet.cluster.local import fleets
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.cluster.local.programs import NO_OWNER, Owner, Program


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
    assert listener.owner == NO_OWNER
    assert not listener.is_keyless_http


def test_listeners_of_the_visitor_are_left_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert found(server.getsockname()[1], visitor=os.getpid()) == []


@pytest.mark.parametrize("has_keys", [False, True])
def test_a_fleet_owns_its_listeners_and_the_port_identifies_its_http(has_keys: bool) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as http,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        port = http.getsockname()[1]
        fleets.write(
            RunningFleet(
                pid=os.getpid(),
                started_at=fleets.own_start(),
                name="demo",
                url=f"http://127.0.0.1:{port}",
                ray_address="127.0.0.1:2",
                ray_token_path="/state/7.token",
                metrics_port=3,
                models=[],
                has_keys=has_keys,
            )
        )
        (listener,) = found(port)
        (internal,) = found(other.getsockname()[1])
        own = listeners.read().own
    assert listener.owner == internal.owner == own == Owner("demo", os.getpid())
    assert listener.is_keyless_http is not has_keys
    assert not internal.is_keyless_http


def test_the_auth_mode_of_a_cluster_comes_from_any_of_its_processes() -> None:
    cluster = Owner(session="session_1")
    known = {
        1: Program(1, 0, "gcs_server", "bob"),
        2: Program(2, 1, "raylet", "bob", auth_mode="disabled"),
        3: Program(3, 0, "sshd", "root", auth_mode="disabled"),
    }
    owners = {1: cluster, 2: cluster, 3: NO_OWNER}
    assert listeners._auth_modes(known, owners) == {cluster: "disabled"}


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


def test_the_default_port_is_tested_by_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        default = GatewayConfig(port=port)
        monkeypatch.setattr(listeners, "GatewayConfig", lambda: default)
        taken = listeners.read_ports()
    assert (taken.host, taken.port) == ("127.0.0.1", port)
    assert taken.refusal is not None
    assert f"port {port}" in taken.refusal[0]
    assert listeners.read_ports().refusal is None
