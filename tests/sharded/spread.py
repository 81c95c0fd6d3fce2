"""Engines over two nodes, by tensor and by data parallelism, and one on a single node. Ranks
communicate over TCP on one machine, and Ray counts GPUs that do not exist.

It writes `results.json` to the given directory.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import ModelConfig, Pool
from qwenfleet.deployments.operations.processes import of_fleet
from tests.two_nodes import Session, run_program

PLUGIN = Path(__file__).with_name("plugin")
BODY = {
    "model": "tiny",
    "prompt": "def reverse(text):",
    "max_tokens": 800,
    "temperature": 0,
    "ignore_eos": True,
}
SINGLE_CPU = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Environment that a CPU engine gets by default; these engines claim to have GPUs."""


def fleet(port: int) -> FleetConfig:
    pools = (
        Pool(
            name="two-nodes",
            accelerator="H100",
            layout=Layout(tensor_parallel_size=2, nodes=2),
            env=SINGLE_CPU,
        ),
        Pool(
            name="dp-two-nodes",
            accelerator="H100",
            layout=Layout(data_parallel_size=2, expert_parallel=True, nodes=2),
            env=SINGLE_CPU | {"PYTHONPATH": str(PLUGIN)},
        ),
        Pool(name="one-node", layout=Layout()),
    )
    model = ModelConfig(
        id="tiny",
        source="tiny-qwen3-moe",
        max_model_len=4096,
        kv_cache_gib=0.1,
        engine_args={"dtype": "float32", "enforce_eager": True},
        pools=pools,
    )
    return FleetConfig(name="spread", models=(model,), gateway=GatewayConfig(port=port))


def placements() -> list[dict[str, Any]]:
    """Placement groups of two bundles: their state and number of nodes."""
    from ray.util import placement_group_table

    return [
        {"state": group["state"], "nodes": len(set(group["bundles_to_node_id"].values()))}
        for group in placement_group_table().values()
        if len(group["bundles"]) == 2
    ]


def ranks(session: Session) -> list[psutil.Process]:
    """vLLM's processes, workers and cores."""
    return [p for p in of_fleet(session.token) if "VLLM::" in " ".join(p.cmdline())]


def run(session: Session) -> dict[str, Any]:
    for _ in range(2):
        session.cluster.add_node(num_cpus=2, num_gpus=2, resources={"accelerator_type:H100": 1})
    session.deploy(fleet(session.port))
    session.until(lambda: len(session.engines()) == 3 and session.is_up(), "all engines")
    results: dict[str, Any] = {"placement": placements()}
    results["nothing"] = session.disturb(lambda: None)
    results["ran on"] = _pools_at_work(session)
    for title in ("Worker_TP1", "EngineCore_DP1"):
        results[title] = _strike(session, title)
    results["placement after"] = placements()
    return results


def _strike(session: Session, title: str) -> dict[str, Any]:
    """Kill a rank on the second node in the middle of six streams. `left over` lists processes of
    its engine that still run after the engine has been replaced."""
    (victim,) = [p for p in ranks(session) if title in " ".join(p.cmdline())]
    ids = {engine.id for engine in session.engines()}
    family = {engine.id: _family(engine.pid) for engine in session.engines()}
    result = session.disturb(victim.kill)
    session.until(lambda: len(_new(session, ids)) == 1, "another engine")
    session.until(lambda: len(session.engines()) == 3, "no more of the lost one")
    (lost,) = ids - {engine.id for engine in session.engines()}
    result["left over"] = [p.name() for p in (*family[lost], victim) if p.is_running()]
    return result


def _new(session: Session, ids: set[str]) -> set[str]:
    return {engine.id for engine in session.engines()} - ids


def _family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _pools_at_work(session: Session) -> list[str]:
    """Pools that ran one of six concurrent requests."""
    from tests.two_nodes import Stream

    streams = [Stream(session.url, BODY) for _ in range(6)]
    seen: set[str] = set()
    while any(stream.is_alive() for stream in streams):
        seen |= {engine.pool for engine in session.engines() if engine.running}
        time.sleep(0.2)
    return sorted(seen)


if __name__ == "__main__":
    run_program(run, fleet, BODY)
