"""A fleet without `gateway.host`, with a gateway on each of two nodes and its engine on one.

It writes `results.json` to the given directory.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.model import ModelConfig, Replicas, ScriptConfig
from tests.two_nodes import Session

REQUESTS = 16
BODY = {"model": "scripted", "prompt": "x", "max_tokens": 8}


def fleet(port: int) -> FleetConfig:
    model = ModelConfig(
        id="scripted",
        source="tiny-qwen3-moe",
        engine="scripted",
        script=ScriptConfig(num_tokens=8, step_s=0.01, tokens=tuple(range(97, 105))),
        replicas=Replicas(min=1),
    )
    gateway = GatewayConfig(port=port, replicas=2)
    assert gateway.host == "127.0.0.1"
    return FleetConfig(name="spread-gateways", models=(model,), gateway=gateway)


def main(directory: Path) -> dict[str, Any]:
    session = Session(directory, fleet, BODY)
    from qwenfleet.deployments.app import ROLE_LABEL

    try:
        session.cluster.add_node(num_cpus=1, labels={ROLE_LABEL: "gateway"})
        return run(session)
    finally:
        session.end()


def run(session: Session) -> dict[str, Any]:
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
    }


def _status(url: str) -> int:
    return httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).status_code


if __name__ == "__main__":
    where = Path(sys.argv[1])
    (where / "results.json").write_text(json.dumps(main(where)))
