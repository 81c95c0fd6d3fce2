"""Settings of older guides that vLLM 0.32 ignores, and what to use instead. Pure.

A variable that vLLM does not read changes nothing. An argument that vLLM does not have needs no
list: `config/vllm_arguments.py` has all of them, and any other is refused. A unit test checks both
against the installed vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from qwenfleet.cluster.config.fleet import FleetConfig


@dataclass(frozen=True)
class RemovedSetting:
    """One setting that vLLM no longer reads, or never did."""

    name: str
    remedy: str
    """Replacement, as a whole sentence."""
    now: tuple[str, ...] = ()
    """Current vLLM settings that `remedy` names."""


SGLANG: Final = "It is an SGLang variable"

REMOVED_VARIABLES: Final = (
    RemovedSetting(
        "VLLM_ATTENTION_BACKEND", "Set engine_args.attention_backend.", ("attention_backend",)
    ),
    RemovedSetting("VLLM_USE_V1", "Remove it: the V1 engine is the only one."),
    RemovedSetting(
        "VLLM_USE_FLASHINFER_MOE_FP4",
        "Set engine_args.moe_backend to flashinfer_trtllm or flashinfer_cutlass.",
        ("moe_backend",),
    ),
    RemovedSetting(
        "VLLM_USE_FLASHINFER_MOE_FP8",
        "Set engine_args.moe_backend to flashinfer_trtllm or flashinfer_cutlass.",
        ("moe_backend",),
    ),
    RemovedSetting(
        "VLLM_USE_FLASHINFER_MOE_FP16",
        "Set engine_args.moe_backend to flashinfer_trtllm or flashinfer_cutlass.",
        ("moe_backend",),
    ),
    RemovedSetting("VLLM_FLASHINFER_MOE_BACKEND", "Set engine_args.moe_backend.", ("moe_backend",)),
    RemovedSetting(
        "VLLM_ALL2ALL_BACKEND", "Set engine_args.all2all_backend.", ("all2all_backend",)
    ),
    RemovedSetting(
        "VLLM_FLASH_ATTN_VERSION",
        "Set flash_attn_version in engine_args.attention_config.",
        ("attention_config",),
    ),
    RemovedSetting(
        "VLLM_USE_TRTLLM_ATTENTION",
        "Set use_trtllm_attention in engine_args.attention_config.",
        ("attention_config",),
    ),
    RemovedSetting(
        "VLLM_USE_TRITON_FLASH_ATTN",
        "Set engine_args.attention_backend; on AMD, set VLLM_ROCM_USE_AITER first.",
        ("attention_backend", "VLLM_ROCM_USE_AITER"),
    ),
    RemovedSetting(
        "VLLM_V1_USE_PREFILL_DECODE_ATTENTION",
        "Set engine_args.attention_backend to ROCM_ATTN.",
        ("attention_backend",),
    ),
    RemovedSetting(
        "VLLM_ROCM_USE_AITER_PAGED_ATTN",
        "Set VLLM_ROCM_USE_AITER_MHA or VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION.",
        ("VLLM_ROCM_USE_AITER_MHA", "VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION"),
    ),
    RemovedSetting(
        "VLLM_SKIP_DEEP_GEMM_WARMUP", "Set VLLM_DEEP_GEMM_WARMUP.", ("VLLM_DEEP_GEMM_WARMUP",)
    ),
    RemovedSetting(
        "VLLM_TORCH_PROFILER_DIR", "Set engine_args.profiler_config.", ("profiler_config",)
    ),
    RemovedSetting(
        "VLLM_FUSED_MOE_CHUNK_SIZE", "Remove it: vLLM no longer runs experts in chunks."
    ),
    RemovedSetting("VLLM_USE_RAY_COMPILED_DAG", "Remove it: the Ray executor no longer uses it."),
    RemovedSetting("VLLM_USE_RAY_SPMD_WORKER", "Remove it: the Ray executor no longer uses it."),
    RemovedSetting(
        "SGLANG_USE_AITER", f"{SGLANG}: set VLLM_ROCM_USE_AITER instead.", ("VLLM_ROCM_USE_AITER",)
    ),
)

REMOVED_ALL2ALL: Final = frozenset({"naive", "pplx"})
"""vLLM 0.32 `config/parallel.py` replaces them with allgather_reducescatter."""

_VARIABLES: Final = {one.name: one for one in REMOVED_VARIABLES}


def removed_settings(engine_args: Mapping[str, JsonValue], env: Mapping[str, str]) -> list[str]:
    """Return, for each setting without effect, what it is and what to use instead."""
    found = [
        f"vLLM 0.32 does not read {name}. {_VARIABLES[name].remedy}"
        for name in env
        if name in _VARIABLES
    ]
    backend = engine_args.get("all2all_backend")
    if backend in REMOVED_ALL2ALL:
        found.append(
            f"vLLM 0.32 has no all2all_backend {backend} and uses allgather_reducescatter instead. "
            "Set that one, or a deepep or mori backend."
        )
    return found


def of_config(config: FleetConfig) -> list[str]:
    """Check every pool of every model; each warning appears once per model."""
    found = {
        f"model '{model.id}': {sentence}": None
        for model in config.models
        for pool in model.engine_pools
        for sentence in removed_settings(pool.engine_args, pool.env)
    }
    return list(found)
