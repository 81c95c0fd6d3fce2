"""What a node's HAProxy answers to health probes, with the configuration that Serve writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qwenfleet.deployments.haproxy_config import NO_GATEWAY
from qwenfleet.deployments.haproxy_keeper import prepare
from tests.unit.deployments.haproxy_node import LOCAL, REMOTE, Node, expect

PROBES = ("/-/healthz", "/health/ready")
OWN = ("/-/healthz", "/health/live")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.end()


def test_a_node_with_engines_only_tells_load_balancers_to_go_elsewhere(node: Node) -> None:
    node.write(node.gateway(REMOTE))
    node.start()
    assert [node.answer(path) for path in PROBES] == [503, 503]
    assert node.answer("/v1/models") == 200, "what arrives nevertheless is passed on"
    body = httpx.get(f"{node.url}/health/ready")
    assert body.json()["error"] == {
        "message": NO_GATEWAY,
        "type": "server_error",
        "param": None,
        "code": "no_gateway",
    }
    assert body.headers["retry-after"] == "1"


def test_a_head_without_a_gateway_tells_load_balancers_to_go_elsewhere(node: Node) -> None:
    """Serve's fallback proxy is there, and no gateway."""
    node.write(node.gateway(REMOTE), is_head=True)
    node.start()
    assert [node.answer(path) for path in PROBES] == [503, 503]


def test_a_head_before_the_first_deployment_is_not_ready(node: Node) -> None:
    node.write(is_head=True)
    node.start()
    assert [node.answer(path) for path in PROBES] == [503, 503]


def test_a_node_is_ready_once_its_own_gateway_runs(node: Node) -> None:
    """Serve lists a gateway when it runs: until then, a new node has those of other nodes only."""
    node.write(node.gateway(REMOTE), node.gateway(LOCAL))
    node.start()
    assert [node.answer(path) for path in PROBES] == [200, 200]


def test_one_of_two_gateways_on_a_node_is_enough(node: Node) -> None:
    lost = node.gateway(LOCAL)
    node.end_gateways()
    node.write(lost, node.gateway(LOCAL))
    node.start()
    time.sleep(3)  # HAProxy has noticed the lost one
    assert [node.answer(path) for path in PROBES] == [200, 200]


def test_a_node_whose_gateway_died_is_not_ready(node: Node) -> None:
    node.write(node.gateway(LOCAL))
    node.start()
    assert node.answer("/-/healthz") == 200
    node.end_gateways()
    expect(lambda: node.answer("/-/healthz") == 503, "HAProxy notices")
    assert json.loads(httpx.get(f"{node.url}/health/ready").text)["error"]["code"] == "no_gateway"


def test_a_second_start_with_the_same_configuration_changes_nothing(node: Node) -> None:
    node.write(node.gateway(LOCAL))
    prepare(node.config)
    once = node.config.read_text()
    prepare(node.config)
    assert node.config.read_text() == once


def test_probes_are_answered_on_the_port_of_the_statistics_too(node: Node) -> None:
    node.write(node.gateway(LOCAL))
    node.start()
    answers = {path: httpx.get(node.health_url + path).status_code for path in OWN}
    assert answers == {"/-/healthz": 200, "/health/live": 200}
    node.end_gateways()
    expect(lambda: httpx.get(f"{node.health_url}/-/healthz").status_code == 503, "HAProxy notices")
    assert httpx.get(f"{node.health_url}/health/live").status_code == 200
    assert httpx.get(f"{node.health_url}/stats").status_code == 200
