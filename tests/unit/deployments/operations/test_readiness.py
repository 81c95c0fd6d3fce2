"""Tests what a fleet's address is found to answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.deployments.operations.readiness import Readiness, probe


class Server(ThreadingHTTPServer):
    """Answers every request with the same response."""

    status = 200
    body = b"{}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        assert self.path == "/health/ready"
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "found", "text"),
    [
        (200, b'{"status": "ok"}', Readiness(200), "ready"),
        (503, b'{"error": {"code": "no_engine"}}', Readiness(503, "no_engine"), "503 no_engine"),
        (500, b"Internal Server Error", Readiness(500), "500"),
        (404, b"[]", Readiness(404), "404"),
    ],
)
def test_answer_is_read_with_its_code(
    server: Server, status: int, body: bytes, found: Readiness, text: str
) -> None:
    server.status, server.body = status, body
    answer = probe(f"http://127.0.0.1:{server.server_port}")
    assert answer == found
    assert str(answer) == text
    assert answer.is_ready == (status == 200)


def test_closed_port_does_not_answer() -> None:
    (port,) = free_ports(1, "127.0.0.1")
    assert str(probe(f"http://127.0.0.1:{port}")) == "does not answer"
