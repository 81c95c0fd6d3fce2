"""An engine over two nodes starts a fleet's registry, is lost, another one joins, and the one after
that does not start.

The fleet is made as KubeRay makes it: a head without CPUs, nodes that come later, and no driver
that stays. It writes `results.json` to the given directory.
"""

from __future__ import annotations

from typing import Any

import psutil

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import ModelConfig
from tests.sharded.spread import SINGLE_CPU
from tests.two_nodes import Session, run_program

BODY = {"model": "tiny", "prompt": "def f():", "max_tokens": 8, "temperature": 0}
TOO_MUCH_GIB = 100_000.0
"""A KV cache that no machine has."""


def fleet(port: int, kv_cache_gib: float = 0.1) -> FleetConfig:
    model = ModelConfig(
        id="tiny",
        source="tiny-qwen3-moe",
        max_model_len=1024,
        kv_cache_gib=kv_cache_gib,
        engine_args={"dtype": "float32", "enforce_eager": True},
        accelerator="H100",
        layout=Layout(tensor_parallel_size=2, nodes=2),
        env=SINGLE_CPU,
    )
    return FleetConfig(name="heads", models=(model,), gateway=GatewayConfig(port=port))


def run(session: Session) -> dict[str, Any]:
    from qwenfleet.deployments.app import ROLE_LABEL

    session.deploy(fleet(session.port))
    with session.left():
        for _ in range(2):
            session.cluster.add_node(
                num_cpus=1,
                num_gpus=1,
                resources={"accelerator_type:H100": 1},
                labels={ROLE_LABEL: "engine"},
            )
    session.until(lambda: session.snapshot() is not None, "a registry, which the engine starts")
    results: dict[str, Any] = {"at first": registry()}
    session.cluster.add_node(num_cpus=1, labels={ROLE_LABEL: "gateway"})
    session.until(lambda: len(session.engines()) == 1 and session.is_up(), "the first engine")
    (first,) = session.engines()
    psutil.Process(first.pid).kill()
    session.until(lambda: _other(session, first.id) is not None, "another engine")
    session.until(session.is_up, "requests are answered")
    another = _other(session, first.id)
    results |= {"at last": registry(), "nodes": len(another.nodes)}
    session.deploy(fleet(session.port, TOO_MUCH_GIB))
    session.until(lambda: _failures(session), "an engine that does not start")
    return results | {"failure": _failures(session)[-1].reason}


def registry() -> dict[str, Any]:
    """The registry's actor: its process, and whether it is on the head."""
    from ray._private import state
    from ray.serve._private.utils import get_head_node_id

    actors = [one for one in state.actors().values() if one["ActorClassName"] == "RegistryActor"]
    (actor,) = actors
    is_on_head = actor["Address"]["NodeID"] == get_head_node_id()
    return {"is on the head": is_on_head, "state": actor["State"], "pid": actor["Pid"]}


def _failures(session: Session) -> Any:
    snapshot = session.snapshot()
    return () if snapshot is None else snapshot.failures


def _other(session: Session, lost: str) -> Any:
    return next((engine for engine in session.engines() if engine.id != lost), None)


if __name__ == "__main__":
    run_program(run, fleet, BODY, num_cpus=0)
