"""Ray and Serve remove scripted engines from a fleet on two nodes of one machine.

A separate program, because Ray reads its environment when it is imported. It writes `results.json`
to the given directory: for each move the text of its streams, their longest gap, and how many
engines had ended when the last stream did.
"""

from __future__ import annotations

from typing import Any

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig, WireConfig
from tests.two_nodes import Session, run_program, scripted

TOKENS = 400
BODY = {"model": "scripted", "prompt": "x" * 40, "max_tokens": TOKENS}


def fleet(port: int, engines: int, step_s: float = 0.02) -> FleetConfig:
    return FleetConfig(
        name="two-nodes",
        models=(scripted(TOKENS, step_s, engines),),
        gateway=GatewayConfig(port=port),
        wire=WireConfig(heartbeat_s=0.2),
    )


def run(session: Session) -> dict[str, Any]:
    port = session.port
    session.deploy(fleet(port, 2))
    session.until(lambda: len(session.engines()) == 2 and session.is_up(), "the head's engines")
    node = session.cluster.add_node(num_cpus=2)
    session.deploy(fleet(port, 4))
    session.until(lambda: len(session.engines()) == 4, "the second node's engines")
    results = {"nothing": session.disturb(lambda: None)}
    results["scale-down"] = session.disturb(lambda: session.deploy(fleet(port, 2)))
    session.deploy(fleet(port, 4))
    session.until(lambda: len(session.engines()) == 4, "four engines again")
    results["rolling update"] = session.disturb(lambda: session.deploy(fleet(port, 4, 0.021)))
    session.until(lambda: len(session.engines()) == 4, "four new engines")
    nodes = {engine.node for engine in session.engines()}
    results["node removed"] = session.disturb(lambda: session.cluster.remove_node(node, False))
    results["nodes"] = {"count": len(nodes)}
    return results


if __name__ == "__main__":
    run_program(run, lambda port: fleet(port, 2), BODY)
