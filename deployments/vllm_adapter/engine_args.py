"""A model's configuration as vLLM's engine arguments.

vLLM internals used here (0.32): AsyncEngineArgs.
"""

from __future__ import annotations

from typing import Any, Final

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.placement import NodePlace, sharding_args

GIB: Final = 1024**3


def engine_args(
    model: ModelConfig, path: str, traces_url: str | None = None, place: NodePlace | None = None
) -> AsyncEngineArgs:
    """The arguments of this model's engine on one node: the configuration's fields, then its
    `engine_args` as they are."""
    arguments: dict[str, Any] = {"enable_log_requests": False, "otlp_traces_endpoint": traces_url}
    if current_platform.is_cpu():
        arguments["kv_cache_memory_bytes"] = int(model.kv_cache_gib * GIB)
    arguments |= model.engine_args
    arguments |= sharding_args(model.sharding, place)
    arguments |= {"model": path, "served_model_name": [model.id]}
    if model.max_model_len is not None:
        arguments["max_model_len"] = model.max_model_len
    return AsyncEngineArgs(**arguments)
