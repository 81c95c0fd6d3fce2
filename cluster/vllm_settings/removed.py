"""Settings of older guides that vLLM 0.32 ignores, and what to use instead. Pure.

A variable that vLLM does not read changes nothing. An argument that it does not have needs no list:
vLLM refuses it by name when the engine starts. A unit test compares both with the installed vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from qwenfleet.cluster.config.fleet import FleetConfig


@dataclass(frozen=True)
class Gone:
    """One setting that vLLM does not read any more, or never did."""

    name: str
    way_out: str
    """A whole sentence."""
    now: tuple[str, ...] = ()
    """What vLLM has today and the sentence names."""


NEVER: Final = "It is SGLang's and means nothing to vLLM"

GONE_VARIABLES: Final = (
    Gone("VLLM_ATTENTION_BACKEND", "Set engine_args.attention_backend.", ("attention_backend",)),
    Gone("VLLM_USE_V1", "Remove it: the V1 engine is the only one."),
    Gone(
        "VLLM_USE_FLASHINFER_MOE_FP4",
        "Set engine_args.moe_backend to flashinfer_trtllm or flashinfer_cutlass.",
        ("moe_backend",),
    ),
    Gone(
        "VLLM_USE_FLASHINFER_MOE_FP8",
        "Set engine_args.moe_backend to flashinfer_trtllm or flashinfer_cutlass.",
        ("moe_backend",),
    ),
    Gone(
        "VLLM_USE_FLASHINFER_MOE_FP16",
        "Set engine_args.moe_backend to flashinfer_trtllm or flashinfer_cutlass.",
        ("moe_backend",),
    ),
    Gone("VLLM_FLASHINFER_MOE_BACKEND", "Set engine_args.moe_backend.", ("moe_backend",)),
    Gone("VLLM_ALL2ALL_BACKEND", "Set engine_args.all2all_backend.", ("all2all_backend",)),
    Gone(
        "VLLM_FLASH_ATTN_VERSION",
        "Set flash_attn_version in engine_args.attention_config.",
        ("attention_config",),
    ),
    Gone(
        "VLLM_USE_TRTLLM_ATTENTION",
        "Set use_trtllm_attention in engine_args.attention_config.",
        ("attention_config",),
    ),
    Gone(
        "VLLM_USE_TRITON_FLASH_ATTN",
        "Set engine_args.attention_backend, on AMD after VLLM_ROCM_USE_AITER.",
        ("attention_backend", "VLLM_ROCM_USE_AITER"),
    ),
    Gone(
        "VLLM_V1_USE_PREFILL_DECODE_ATTENTION",
        "Set engine_args.attention_backend to ROCM_ATTN.",
        ("attention_backend",),
    ),
    Gone(
        "VLLM_ROCM_USE_AITER_PAGED_ATTN",
        "Set VLLM_ROCM_USE_AITER_MHA or VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION.",
        ("VLLM_ROCM_USE_AITER_MHA", "VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION"),
    ),
    Gone("VLLM_SKIP_DEEP_GEMM_WARMUP", "Set VLLM_DEEP_GEMM_WARMUP.", ("VLLM_DEEP_GEMM_WARMUP",)),
    Gone("VLLM_TORCH_PROFILER_DIR", "Set engine_args.profiler_config.", ("profiler_config",)),
    Gone("VLLM_FUSED_MOE_CHUNK_SIZE", "Remove it: experts are not run in chunks any more."),
    Gone("VLLM_USE_RAY_COMPILED_DAG", "Remove it: the Ray executor does without."),
    Gone("VLLM_USE_RAY_SPMD_WORKER", "Remove it: the Ray executor does without."),
    Gone("SGLANG_USE_AITER", f"{NEVER}: set VLLM_ROCM_USE_AITER.", ("VLLM_ROCM_USE_AITER",)),
)

GONE_ALL2ALL: Final = frozenset({"naive", "pplx"})
"""vLLM 0.32 `config/parallel.py` falls back to allgather_reducescatter for them."""

_VARIABLES: Final = {one.name: one for one in GONE_VARIABLES}


def gone_settings(engine_args: Mapping[str, JsonValue], env: Mapping[str, str]) -> list[str]:
    """Two sentences for each setting that has no effect: what it is, and what to use instead."""
    said = [
        f"vLLM 0.32 does not read {name}. {_VARIABLES[name].way_out}"
        for name in env
        if name in _VARIABLES
    ]
    backend = engine_args.get("all2all_backend")
    if backend in GONE_ALL2ALL:
        said.append(
            f"vLLM 0.32 has no all2all_backend {backend} and takes allgather_reducescatter. "
            "Name that one, or one of the deepep or mori backends."
        )
    return said


def of_config(config: FleetConfig) -> list[str]:
    """Of every pool of every model, each said once."""
    said = {
        f"model '{model.id}': {sentence}": None
        for model in config.models
        for pool in model.engine_pools
        for sentence in gone_settings(pool.engine_args, pool.env)
    }
    return list(said)
