"""What one client can take from the others at a node's HAProxy: slow headers, half bodies, streams
that nobody reads. A real HAProxy on loopback, with Serve's configuration and ours."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import httpx
import pytest

from qwenfleet.deployments import haproxy_config, haproxy_keeper
from tests.unit.deployments.haproxy_node import LOCAL, Node, expect

CLIENT_TIMEOUT_S = 2
HEADER_TIMEOUT_S = 1
CONNECTIONS = 40
IDLE = CONNECTIONS // haproxy_config.IDLE_SHARE
PROMPT_S = 1.5
"""Less than CLIENT_TIMEOUT_S, after which half bodies end by themselves."""
OTHER = "127.0.0.7"
"""Another client's address: all of 127/8 is this machine."""


class Gateway(BaseHTTPRequestHandler):
    """Answers with the names of the headers, at once or late, or with a stream without end."""

    streams: ClassVar[set[threading.Thread]] = set()

    def do_GET(self) -> None:
        if self.path == "/stream":
            self.streams.add(threading.current_thread())
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 10_000)
                    time.sleep(0.002)
            except OSError:
                self.streams.discard(threading.current_thread())
                return
        names = json.dumps(sorted(name.lower() for name in self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(names)))
        self.end_headers()
        self.wfile.write(names)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(2 * CLIENT_TIMEOUT_S if self.path == "/late" else 0)
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Clients:
    """Connections of hostile clients."""

    def __init__(self, node: Node) -> None:
        parts = urlsplit(node.url)
        self._to = (parts.hostname, parts.port)
        self._open = ExitStack()

    def connect(self, text: str, source: str = LOCAL) -> socket.socket | None:
        """Connect and send this; None if HAProxy refuses the connection."""
        connection = self._open.enter_context(socket.socket())
        connection.settimeout(20)
        connection.bind((source, 0))
        try:
            connection.connect(self._to)
            connection.sendall(text.encode("latin-1"))
        except OSError:
            return None
        return connection

    def close(self) -> None:
        self._open.close()


def is_accepted(connection: socket.socket | None) -> bool:
    """Whether HAProxy keeps a connection, or has answered it. The kernel accepts it before."""
    if connection is None:
        return False
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


def half_body(path: str = "/") -> str:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"


def status_from(node: Node, source: str) -> int:
    """Return the status that a client at this address gets; 0 if its connection is refused."""
    try:
        with httpx.Client(transport=httpx.HTTPTransport(local_address=source)) as client:
            return client.get(node.url + "/v1/models").status_code
    except httpx.TransportError:
        return 0


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(haproxy_config, "HEADER_TIMEOUT_S", HEADER_TIMEOUT_S)
    node = Node(tmp_path, Gateway, maxconn=CONNECTIONS, timeout_client_s=CLIENT_TIMEOUT_S)
    node.write(node.gateway(LOCAL))
    yield node
    node.end()


@pytest.fixture
def clients(node: Node) -> Iterator[Clients]:
    node.start()
    clients = Clients(node)
    yield clients
    clients.close()


@pytest.mark.parametrize("start", ["", "GET / HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_connection_without_a_whole_header_is_closed(clients: Clients, start: str) -> None:
    connection = clients.connect(start)
    assert connection is not None
    began_at = time.monotonic()
    while connection.recv(1000):
        pass
    assert time.monotonic() - began_at < HEADER_TIMEOUT_S + 5


def test_connections_of_one_address_leave_room_for_others(node: Node, clients: Clients) -> None:
    """Those that wait for a header or for the next request."""
    taken = [clients.connect("GET / HT") for _ in range(2 * CONNECTIONS)]
    expect(lambda: sum(map(is_accepted, taken)) < CONNECTIONS, "HAProxy resets the others")
    assert status_from(node, OTHER) == 200


def test_body_that_stops_is_refused(clients: Clients) -> None:
    connection = clients.connect(half_body())
    assert connection is not None
    answer = connection.recv(2000).decode()
    assert answer.startswith("HTTP/1.1 400")
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_answer_that_takes_longer_than_clients_may_be_silent_arrives(clients: Clients) -> None:
    connection = clients.connect("POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    assert connection is not None
    assert b" 200 OK" in connection.recv(2000)


def test_stream_that_nobody_reads_ends(clients: Clients) -> None:
    assert clients.connect("GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    expect(lambda: Gateway.streams, "it begins")
    expect(lambda: not Gateway.streams, "it ends")


def test_full_pool_does_not_stop_health_probes(node: Node, clients: Clients) -> None:
    for address in range(10, 10 + CONNECTIONS):
        clients.connect(half_body(), f"127.0.0.{address}")
    for probe in ("/health/live", "/-/healthz"):
        assert httpx.get(node.health_url + probe, timeout=PROMPT_S).status_code == 200


def test_requests_of_one_address_are_bounded_if_configured(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(haproxy_keeper.ADDRESS_BOUND, "3")
    node.start()
    clients = Clients(node)
    for _ in range(3):
        clients.connect(half_body())
    expect(lambda: node.answer("/v1/models") == 429, "HAProxy counts them")
    refused = httpx.get(f"{node.url}/v1/models")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert refused.json()["error"]["code"] == "too_many_requests"
    assert httpx.get(f"{node.url}/health/live").status_code == 200
    assert status_from(node, OTHER) == 200
    clients.close()


@pytest.mark.parametrize(
    "header",
    [
        "X-Request-Timeout-Seconds: 9999",
        "X-Request-Disconnect-Disabled: ?1",
        "Serve_Multiplexed_Model_Id: \xff",
        "Serve-Multiplexed-Model-Id: a",
    ],
)
def test_clients_give_no_orders_to_serve(clients: Clients, header: str) -> None:
    assert names_that_arrive(clients, header) == ["host", "x-session-id"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
@pytest.mark.parametrize("name", ["X-Request-Id", "X-Session-ID"])
def test_header_that_serve_cannot_decode_is_refused_in_the_form_of_the_api(
    clients: Clients, name: str, path: str
) -> None:
    answer = answer_with(clients, f"{name}: a, \xff\xfe", path=path)
    assert answer.startswith("HTTP/1.1 400")
    body = json.loads(answer.partition("\r\n\r\n")[2])
    assert name.lower() in body["error"]["message"]
    assert ("type" in body, "code" in body["error"]) == (
        path == "/v1/messages",
        path != "/v1/messages",
    )


def names_that_arrive(clients: Clients, header: str) -> list[str]:
    answer = answer_with(clients, header, "X-Session-ID: a b ~")
    found: list[str] = json.loads(answer.partition("\r\n\r\n")[2])
    return found


def answer_with(clients: Clients, *headers: str, path: str = "/") -> str:
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "\r\n"]
    connection = clients.connect("\r\n".join(lines))
    assert connection is not None
    return connection.makefile("r", encoding="latin-1", newline="").read()


def test_request_without_a_gateway_is_refused_in_the_form_of_the_api(node: Node) -> None:
    node.start()
    node.end_gateways()
    expect(lambda: node.answer("/v1/models") == 503, "HAProxy notices")
    refused = httpx.get(f"{node.url}/v1/models")
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("no_gateway", "5")


def test_only_the_owner_can_reach_the_administration_socket(node: Node, clients: Clients) -> None:
    admin = node.config.with_name("admin.sock")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (admin, admin.parent)]
    assert modes == [0o600, 0o700]
