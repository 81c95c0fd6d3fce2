"""How a layout is said to vLLM, on each node of an engine. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import ModelConfig

Bundle = dict[str, float]


@dataclass(frozen=True)
class NodePlace:
    """One node of an engine that spans several, and where its first node listens."""

    node_rank: int
    head: str
    """IP address of the first node."""
    group_port: int
    """Where torch's process group of one tensor and pipeline parallel group meets."""
    handshake_port: int
    """Where cores of data parallel ranks on other nodes report."""


def sharding_args(layout: Layout, place: NodePlace | None) -> dict[str, Any]:
    """AsyncEngineArgs of one node; `place` is None when there is only one.

    vLLM's mp executor has a worker process per GPU and spans nodes by itself; its ray executor
    would want a bundle per GPU, of which Ray cannot keep eight together on each of two nodes.
    """
    arguments: dict[str, Any] = {
        "tensor_parallel_size": layout.tensor_parallel_size,
        "pipeline_parallel_size": layout.pipeline_parallel_size,
        "data_parallel_size": layout.data_parallel_size,
        "enable_expert_parallel": layout.expert_parallel,
        "enable_eplb": layout.expert_load_balancing,
    }
    if place is None:
        return arguments
    return arguments | {
        "distributed_executor_backend": "mp",
        "nnodes": layout.nodes,
        "node_rank": place.node_rank,
        "master_addr": place.head,
        "master_port": place.group_port,
        "data_parallel_address": place.head,
        "data_parallel_rpc_port": place.handshake_port,
    }


def node_bundle(model: ModelConfig) -> Bundle:
    """What an engine takes of each of its nodes: all its GPUs there in one bundle."""
    if model.accelerator is None:
        return {"CPU": 1}
    gpus = float(model.sharding.gpus_per_node)
    return {"CPU": 1, "GPU": gpus, f"accelerator_type:{model.accelerator}": 0.001}


def actor_resources(bundle: Mapping[str, float]) -> dict[str, Any]:
    """The bundle as options of the Ray actor that fills it."""
    others = {name: value for name, value in bundle.items() if name not in {"CPU", "GPU"}}
    options: dict[str, Any] = {"num_cpus": bundle["CPU"]}
    if "GPU" in bundle:
        options["num_gpus"] = bundle["GPU"]
    return options | ({"resources": others} if others else {})
