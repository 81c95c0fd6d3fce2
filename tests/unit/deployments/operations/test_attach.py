"""Tests which cluster an address selects."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenfleet.cluster.errors import FleetNotFound
from qwenfleet.cluster.local import programs
from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.deployments.operations import attach


@pytest.fixture(autouse=True)
def no_fleet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1:x", "ray://127.0.0.1:1"])
def test_invalid_address_is_refused_with_a_sentence(address: str) -> None:
    with pytest.raises(FleetNotFound, match="no Ray cluster answers"):
        attach.cluster(None, address)


def test_address_without_a_listener_is_refused_at_once() -> None:
    (port,) = free_ports(1, "127.0.0.1")
    with pytest.raises(FleetNotFound, match=f"127.0.0.1:{port}"):
        attach.cluster(None, f"127.0.0.1:{port}")


def test_auto_uses_the_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1, "127.0.0.1")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(FleetNotFound, match=f"127.0.0.1:{port}"):
        attach.cluster(None, "auto")


@pytest.mark.parametrize(
    ("addresses", "reported"),
    [([], "no Ray cluster has a node on"), (["a:1", "b:2"], "a:1, b:2. Select one")],
)
def test_auto_requires_exactly_one_cluster(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], reported: str
) -> None:
    monkeypatch.setattr(programs, "ray_addresses", lambda: addresses)
    with pytest.raises(FleetNotFound, match=reported):
        attach.cluster(None, "auto")


def test_port_without_a_fleet_says_how_to_start_one() -> None:
    with pytest.raises(FleetNotFound, match="qwenfleet serve"):
        attach.cluster(8000, None)
