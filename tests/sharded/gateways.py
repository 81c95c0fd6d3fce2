"""A fleet without `gateway.host`, with a gateway on each of two nodes and its engine on one, which
is drained at the end.

It writes `results.json` to the given directory.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from tests.two_nodes import Session, run_program, scripted

REQUESTS = 16
START_S = 5
"""An engine starts for so long, in which it is seen."""
BODY = {"model": "scripted", "prompt": "x", "max_tokens": 8}


def fleet(port: int) -> FleetConfig:
    model = scripted(num_tokens=8, step_s=0.01, start_s=START_S)
    gateway = GatewayConfig(port=port, replicas=2)
    assert gateway.host == "127.0.0.1"
    return FleetConfig(name="spread-gateways", models=(model,), gateway=gateway)


def run(session: Session) -> dict[str, Any]:
    from qwenfleet.deployments.app import ROLE_LABEL

    session.cluster.add_node(num_cpus=1, labels={ROLE_LABEL: "gateway"})
    session.deploy(fleet(session.port))
    session.until(lambda: len(session.engines()) == 1 and session.is_up(), "the engine")
    session.until(lambda: len(session.gateways()) == 2, "both gateways")
    with ThreadPoolExecutor(REQUESTS) as pool:
        statuses = list(pool.map(lambda _: _status(session.url), range(REQUESTS)))
    (engine,) = session.engines()
    return {
        "engine": {"node": engine.node, "host": engine.host},
        "gateways": [gateway.node for gateway in session.gateways()],
        "statuses": statuses,
        "drained": engine.id,
        "replaced": drain(session, engine.id),
    }


def drain(session: Session, engine: str) -> list[str]:
    """Drain the engine as an operator does, until another is ready; returns the engines that those
    which started meanwhile are listed to replace."""
    from qwenfleet.deployments.registry import client as registry
    from qwenfleet.deployments.registry.records import DrainOrder

    registry.drain(session.name, engine, DrainOrder("drained by an operator", 10.0))
    replaced: set[str] = set()

    def is_replaced() -> bool:
        snapshot = session.snapshot()
        if snapshot is not None:
            replaced.update(one.replaces for one in snapshot.engines if one.state == "starting")
        return any(one.id != engine for one in session.engines())

    session.until(is_replaced, "another engine")
    return sorted(replaced)


def _status(url: str) -> int:
    return httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).status_code


if __name__ == "__main__":
    run_program(run, fleet, BODY)
