"""A head, two nodes with a gateway and one with the engine, each with an address and an HAProxy.

The second gateway comes later. It writes `results.json` to the given directory.
"""

from __future__ import annotations

import os
import time
from typing import Any

import httpx

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.local.ports import free_ports
from tests.two_nodes import Session, run_program, scripted

BODY = {"model": "scripted", "prompt": "x", "max_tokens": 8}
PROBES = ("/-/healthz", "/health/ready")
SETTLED_S = 10
"""How long the new node is watched after it has become ready."""


def fleet(port: int, gateways: int = 1) -> FleetConfig:
    model = scripted(num_tokens=8, step_s=0.01)
    gateway = GatewayConfig(host="0.0.0.0", port=port, replicas=gateways)
    return FleetConfig(name="entrances", models=(model,), gateway=gateway, auth="none")


def run(session: Session) -> dict[str, Any]:
    session.deploy(fleet(session.port))
    gateway = add_node(session, "127.0.0.2", "gateway")
    engine = add_node(session, "127.0.0.3", "engine")
    session.until(lambda: len(session.engines()) == 1, "the engine")
    session.until(lambda: answer(gateway) == 200, "the gateway")
    session.until(lambda: complete(engine) == 200, "the proxy of the engine's node")
    nodes = {"head": session.url, "gateway": gateway, "engine": engine}
    results: dict[str, Any] = {
        name: {"probes": [answer(url, probe) for probe in PROBES], "request": complete(url)}
        for name, url in nodes.items()
    }
    session.deploy(fleet(session.port, gateways=2))
    return results | {"new gateway": watch(session, add_node(session, "127.0.0.4", "gateway"))}


def add_node(session: Session, address: str, role: str) -> str:
    """Add a node with an address of its own; returns the URL of its HAProxy."""
    from qwenfleet.deployments.app import ROLE_LABEL

    (port,) = free_ports(1, "0.0.0.0")
    session.cluster.add_node(
        num_cpus=1,
        node_ip_address=address,
        labels={ROLE_LABEL: role},
        env_vars={"RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(port)},
    )
    return f"http://127.0.0.1:{port}"


def watch(session: Session, url: str) -> dict[str, Any]:
    """What a new gateway's node answers, from its proxy's start: whether it called itself ready
    before two gateways served, and what requests got once it did."""
    early: list[int] = []
    session.until(lambda: answer(url) != 0, "the new node's proxy")
    while answer(url) != 200:
        early.append(len(session.gateways()))
        time.sleep(0.1)
    running = len(session.gateways())
    give_up_at = time.monotonic() + SETTLED_S
    statuses = []
    while time.monotonic() < give_up_at:
        statuses += [answer(url), answer(url, "/health/ready"), complete(url)]
    return {"looks before": len(early), "gateways then": running, "statuses": statuses}


def answer(url: str, probe: str = "/-/healthz") -> int:
    try:
        return httpx.get(url + probe, timeout=5).status_code
    except httpx.TransportError:
        return 0


def complete(url: str) -> int:
    try:
        return httpx.post(f"{url}/v1/completions", json=BODY, timeout=30).status_code
    except httpx.TransportError:
        return 0


if __name__ == "__main__":
    # HAProxies on one machine share the ports of statistics and metrics.
    os.environ["SERVE_SOCKET_REUSE_PORT_ENABLED"] = "1"
    run_program(run, fleet, BODY, num_cpus=0, host="0.0.0.0")
