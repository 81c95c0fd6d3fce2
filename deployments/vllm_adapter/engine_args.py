"""Engine arguments: a model's configuration and layout as vLLM takes them, on each node.

vLLM internals used here (0.32): AsyncEngineArgs. It is imported on use, not with this module: an
engine's replica needs NodePlace before vLLM is imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.config.vllm_arguments import GATEWAY, GRAMMAR_BACKEND
from qwenfleet.cluster.local import memory
from qwenfleet.cluster.models import sources
from qwenfleet.cluster.units import GIB

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs


@dataclass(frozen=True)
class NodePlace:
    """One node of an engine that spans several, and the address of its first node."""

    node_rank: int
    head: str
    """IP address of the first node."""
    group_port: int
    """Rendezvous port of torch's process group for one tensor and pipeline parallel group."""
    handshake_port: int
    """Port to which data-parallel cores on other nodes connect."""


def sharding_args(layout: Layout, place: NodePlace | None) -> dict[str, Any]:
    """Sharding arguments of one node; `place` is None for an engine on a single node.

    vLLM's mp executor runs a worker process per GPU and spans nodes by itself; its ray executor
    would need a bundle per GPU, and Ray cannot keep eight bundles together on each of two nodes.
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


def engine_args(
    model: ModelConfig, path: str, traces_url: str | None = None, place: NodePlace | None = None
) -> AsyncEngineArgs:
    """All arguments of this model's engine on one node. Raw `engine_args` override defaults; fields
    of the configuration override both. Raises MachineError for a CPU engine that the memory limit
    of this container cannot hold."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    arguments: dict[str, Any] = {"enable_log_requests": False, "otlp_traces_endpoint": traces_url}
    if current_platform.is_cpu():
        arguments["kv_cache_memory_bytes"] = _kv_cache_bytes(model, path)
    arguments |= {n: value for n, value in model.engine_args.items() if n not in GATEWAY}
    arguments |= sharding_args(model.sharding, place)
    arguments |= {"model": path, "served_model_name": [model.id]}
    if model.max_model_len is not None:
        arguments["max_model_len"] = model.max_model_len
    return AsyncEngineArgs(**typed(pinned(arguments)))


def _kv_cache_bytes(model: ModelConfig, path: str) -> int:
    """KV cache of each rank of a CPU engine, within the memory limit of this container."""
    own = model.engine_args.get("kv_cache_memory_bytes")
    asked = own / GIB if isinstance(own, int) else model.kv_cache_gib
    weights = sources.weight_bytes(Path(path)) if os.path.isdir(path) else None
    ranks = model.sharding.gpus_per_node
    return memory.kv_cache_bytes(asked, weights or 0, ranks, memory.container_limit_bytes())


def pinned(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the backend of grammars that all engines and gateways of a fleet use. With
    vLLM's own default, the first request of an engine decides (0.32, grammar_init)."""
    chosen = arguments.get("structured_outputs_config") or {}
    if not isinstance(chosen, dict):
        return arguments
    return arguments | {"structured_outputs_config": {**chosen, "backend": GRAMMAR_BACKEND}}


def typed(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with their mappings as vLLM's classes, where vLLM does not convert them (0.32,
    EngineArgs.__post_init__)."""
    from vllm.config import StructuredOutputsConfig
    from vllm.config.reasoning import ReasoningConfig

    kinds = {
        "structured_outputs_config": StructuredOutputsConfig,
        "reasoning_config": ReasoningConfig,
    }
    return arguments | {
        name: kind(**arguments[name])
        for name, kind in kinds.items()
        if isinstance(arguments.get(name), dict)
    }
