"""Changes to the configuration that Ray Serve writes for a node's HAProxy. Pure.

Serve's template (ray 2.60 serve/_private/haproxy_templates.py) bounds neither the time of a header
nor the connections of one client, shares all connections with health probes, lets every user of the
machine administer HAProxy, and answers errors in HTML. It also answers health probes for the
cluster, not for the node. Standard library only: the keeper runs without site packages.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

MARK: Final = "# Changed by qwenfleet.\n"
NO_GATEWAY: Final = "no gateway on this node is ready; send requests to a node that has one"
HEADER_TIMEOUT_S: Final = 10
"""Time for a request's headers, which a client sends in one packet or two."""
SPARE_CONNECTIONS: Final = 256
"""Connections that clients cannot use: for health probes, statistics and metrics."""
IDLE_SHARE: Final = 8
"""One address may hold an eighth of the connections without a request on them."""
BUFFER_BYTES: Final = 32 * 2**10
"""Socket buffer towards a client, and from a gateway. The kernel's own grow to 4 MB, which is
20,000 tokens that a client need not read; with these a stream stood still after 2,350 tokens of
180 bytes, in the buffers of all programs together (30 Nov 2026)."""
RETRY_AFTER_S: Final = 5
SERVE_HEADERS: Final = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve.multiplexed.model.id",
)
"""Headers by which clients would give orders to Serve, before our code (ray 2.60
serve/_private/http_util.py and replica.py); in the last one, `_` and `-` are one."""
TEXT_HEADERS: Final = ("x-request-id", "x-session-id")
"""Headers that Serve decodes before our code: it would answer 500 to bytes that are not text."""
DESCRIPTORS: Final = 1024
"""File descriptors besides connections: listeners, health checks, threads, logs."""

_GATEWAY: Final = re.compile(
    r"^\s*server (\S+) (?:127\.0\.0\.1|::1):\d+ (?!.*\bbackup\s*$)", re.MULTILINE
)
"""Serve writes a gateway of HAProxy's own node with the loopback address (ray 2.60
serve/_private/haproxy.py, `_target_to_server`), whatever address others use."""
_BACKEND: Final = re.compile(r"^backend (\S+)$(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_PROBE: Final = re.compile(r"^ *http-request set-log-level debug if healthcheck\n", re.MULTILINE)
"""The last line of the template before its answers to /-/healthz."""
_ANSWERS: Final = re.compile(
    r"^ *# Health check endpoint\n(.*?)^ *# Routes", re.MULTILINE | re.DOTALL
)
_CONNECTIONS: Final = re.compile(r"^ *maxconn (\d+)$", re.MULTILINE)
_ADMIN: Final = re.compile(r"^( *stats socket \S+ mode )666\b", re.MULTILINE)
_ERRORS: Final = re.compile(r"^ *errorfile 50[234] \S+\n", re.MULTILINE)
_SPLICE: Final = re.compile(r"^ *option splice-\w+\n", re.MULTILINE)
"""HAProxy would keep file descriptors for pipes, a quarter more, although `-dS` turns them off."""
_DEFAULTS: Final = re.compile(r"^defaults\n *mode http\n", re.MULTILINE)
_CLIENTS: Final = re.compile(r"^frontend http_frontend\n *bind .*\n", re.MULTILINE)
_STATISTICS: Final = re.compile(r"^listen stats\n *bind .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Bounds:
    """What one HAProxy may use, and one client of it."""

    descriptors: int
    """Open files that its process may have."""
    requests_per_address: int = 0
    """Concurrent requests of one address; 0 for no bound."""


def adapt(text: str, bounds: Bounds) -> str:
    """Return the configuration with every change; one that was changed before stays as it is."""
    if text.startswith(MARK):
        return text
    found = _CONNECTIONS.search(text)
    wanted = int(found[1]) if found else 0
    connections = max(1, min(wanted, (bounds.descriptors - DESCRIPTORS) // 2 - SPARE_CONNECTIONS))
    text = _answer_for_this_node(text)
    answers = _ANSWERS.search(text)
    text = _ADMIN.sub(r"\g<1>600", text)
    text = _SPLICE.sub("", _ERRORS.sub("", text))
    text = _CONNECTIONS.sub("\n".join(_global_lines(connections)), text, count=1)
    text = _after(_DEFAULTS, text, _default_lines())
    text = _after(_CLIENTS, text, _client_lines(connections, bounds))
    text = _after(_STATISTICS, text, _health_lines(answers[1] if answers else ""))
    return MARK + text + "\n".join(_tables()) + "\n"


def _after(place: re.Pattern[str], text: str, lines: list[str]) -> str:
    return place.sub(lambda found: found[0] + "\n".join([*lines, ""]), text, count=1)


def _answer_for_this_node(text: str) -> str:
    """Make `/-/healthz` and `/health/ready` 503 while no gateway on this node is up. Serve's own
    answer to the first is 200 if one on any node is up, or if this is the head; a gateway on
    another node would answer the second.

    Such a node, for example one with engines only, still passes requests on.
    """
    gateways = [
        f"{backend}/{server}"
        for backend, body in _BACKEND.findall(text)
        for server in _GATEWAY.findall(body)
    ]
    is_up = [f"srv_is_up({gateway})" for gateway in gateways] or ["always_false"]
    refuse = "    http-request return status 503 content-type"
    body = _error("server_error", "no_gateway", NO_GATEWAY)
    rules = [
        *(f"    acl is_gateway_up {condition}" for condition in is_up),
        f'{refuse} text/plain string "{NO_GATEWAY}" if healthcheck !is_gateway_up',
        f"{refuse} application/json hdr Retry-After 1 string {body}"
        " if { path /health/ready } !is_gateway_up",
    ]
    return _PROBE.sub(lambda line: line[0] + "\n".join([*rules, ""]), text, count=1)


def _global_lines(connections: int) -> list[str]:
    return [
        f"    maxconn {connections + SPARE_CONNECTIONS}",
        f"    tune.sndbuf.client {BUFFER_BYTES}",
        f"    tune.rcvbuf.server {BUFFER_BYTES}",
    ]


def _default_lines() -> list[str]:
    """Return the time limit of headers, and errors that clients of the API can read."""
    sentences = {
        400: ("invalid_request_error", "malformed_request", "the HTTP request cannot be read"),
        408: ("timeout", "timeout", "the request was not complete in time"),
        502: ("server_error", "gateway_lost", "the gateway that had this request ended"),
        503: ("server_error", "no_gateway", "no gateway is ready; try again later"),
        504: ("timeout", "timeout", "the gateway did not answer in time"),
    }
    replies = [
        f"    http-error status {status} content-type application/json string {_error(*error)}"
        + f" hdr Retry-After {RETRY_AFTER_S}" * (status == 503)
        for status, error in sentences.items()
    ]
    return [f"    timeout http-request {HEADER_TIMEOUT_S}s", *replies]


def _client_lines(connections: int, bounds: Bounds) -> list[str]:
    """Return the bounds of clients. A connection without a request is idle, or sends its headers;
    what one with a request may do is the gateways' to decide."""
    idle = max(1, connections // IDLE_SHARE)
    lines = [
        f"    maxconn {connections}",
        "    tcp-request connection track-sc0 src table qwenfleet_connections",
        "    tcp-request connection set-var(sess.busy) src,table_conn_cur(qwenfleet_requests)",
        "    tcp-request connection set-var(sess.idle) sc0_conn_cur,sub(sess.busy)",
        f"    tcp-request connection reject if {{ var(sess.idle) -m int gt {idle} }}",
        "    http-request track-sc1 src table qwenfleet_requests",
        *(f"    http-request del-header ^{name}$ -m reg" for name in SERVE_HEADERS),
        *(line for name in TEXT_HEADERS for line in _refusals_of_bytes(name)),
    ]
    if bounds.requests_per_address:
        sentence = (
            f"more than {bounds.requests_per_address} requests of one address are open; "
            "wait for one to end"
        )
        lines.append(
            "    http-request return status 429 content-type application/json"
            f" hdr Retry-After {RETRY_AFTER_S}"
            f" string {_error('rate_limit_error', 'too_many_requests', sentence)}"
            f" if {{ sc1_conn_cur gt {bounds.requests_per_address} }}"
            " !{ path_beg /health/ /-/ }"
        )
    return lines


def _refusals_of_bytes(header: str) -> list[str]:
    sentence = f"the header '{header}' is not printable ASCII"
    kind = "invalid_request_error"
    refuse = "    http-request return status 400 content-type application/json string"
    condition = f"if {{ req.fhdr({header}) -m reg '[^ -~]' }}"
    return [
        f"{refuse} {_anthropic_error(kind, sentence)} {condition} {{ path_beg /v1/messages }}",
        f"{refuse} {_error(kind, 'invalid_field', sentence)} {condition}",
    ]


def _health_lines(answers: str) -> list[str]:
    """Return the same answers to probes on the port of the statistics, which clients do not use."""
    alive = '"{\\"status\\":\\"ok\\"}" if { path /health/live }'
    return [
        *answers.rstrip("\n").splitlines(),
        f"    http-request return status 200 content-type application/json string {alive}",
    ]


def _tables() -> list[str]:
    """Return the tables that count by address. HAProxy keeps each in a proxy of its own."""
    table = "    stick-table type ipv6 size 100k expire 1m store conn_cur"
    return [
        line
        for name in ("connections", "requests")
        for line in (f"backend qwenfleet_{name}", table)
    ]


def _error(kind: str, code: str, message: str) -> str:
    """Return an error in OpenAI's form as a quoted word of the configuration."""
    return _word({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _anthropic_error(kind: str, message: str) -> str:
    return _word({"type": "error", "error": {"type": kind, "message": message}})


def _word(body: object) -> str:
    return '"' + json.dumps(body).replace('"', '\\"') + '"'
