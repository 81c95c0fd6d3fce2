"""Engine arguments and environment for a model, GPUs and layout, with reasons. Pure.

Names are those of vLLM 0.32; a unit test looks for each of them in the installed package. Sources:
vllm-project/recipes (Qwen3-Coder-480B-A35B-Instruct.yaml, 2026-04-17), vLLM's blog of 2025-12-16 on
ROCm attention, and vLLM's source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import JsonValue

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import Accelerator, Vendor
from qwenfleet.cluster.models.geometry import Geometry, KVDtype, QuantMethod
from qwenfleet.cluster.vllm_settings.defaults import BATCHED_TOKENS, UTILIZATION
from qwenfleet.cluster.vllm_settings.long_context import yarn_notes, yarn_overrides

AITER_SLOWDOWNS: Final = (
    "without AITER, vLLM's blog of 2025-12-16 measured attention 1.13 to 1.36 times slower "
    "(TRITON_ATTN) and up to 6.3 times (ROCM_ATTN)"
)


@dataclass(frozen=True)
class EngineSettings:
    """Settings for a model's section of the fleet's configuration."""

    tool_call_parser: str | None
    engine_args: Mapping[str, JsonValue]
    env: Mapping[str, str]
    notes: tuple[str, ...]
    """Advice for the operator, as whole sentences."""


@dataclass(frozen=True)
class EngineNeeds:
    """Inputs that determine the settings."""

    model_name: str
    """Hugging Face ID or directory."""
    geometry: Geometry
    accelerator: Accelerator
    layout: Layout
    context_tokens: int
    """Longest prompt plus output."""
    kv_dtype: KVDtype = KVDtype.AUTO
    sequences: int | None = None
    """`max_num_seqs` of one data parallel rank; None keeps vLLM's default."""
    utilization: float = field(default=UTILIZATION)

    @property
    def method(self) -> QuantMethod | None:
        """Quantization method of the weights."""
        return self.geometry.quantization.method if self.geometry.quantization else None


def settings_for(needs: EngineNeeds) -> EngineSettings:
    """Return settings that differ from vLLM's defaults or that the plan relies on. Raises PlanError
    for a context that no method reaches."""
    engine_args: dict[str, JsonValue] = {
        "gpu_memory_utilization": needs.utilization,
        "max_num_batched_tokens": BATCHED_TOKENS,
    }
    if needs.sequences is not None:
        engine_args["max_num_seqs"] = needs.sequences
    if needs.kv_dtype is not KVDtype.AUTO:
        engine_args["kv_cache_dtype"] = needs.kv_dtype.value
    overrides = yarn_overrides(needs.geometry, needs.context_tokens)
    if overrides:
        engine_args["hf_overrides"] = overrides
    notes = [*_moe_notes(needs), *_vendor_notes(needs)]
    notes += yarn_notes(needs.geometry, needs.context_tokens)
    return EngineSettings(
        tool_call_parser(needs.model_name), engine_args, _environment(needs), tuple(notes)
    )


def tool_call_parser(model_name: str) -> str | None:
    """Return the parser for the tool calls of a model's chat template: the Coder models write XML,
    other Qwen3 models Hermes JSON. The wrong parser loses calls silently."""
    name = model_name.rstrip("/").rpartition("/")[2].lower()
    if "qwen3-coder" in name:
        return "qwen3_coder"
    return "hermes" if "qwen3" in name else None


def _environment(needs: EngineNeeds) -> dict[str, str]:
    if needs.accelerator.vendor is Vendor.AMD:
        return {"VLLM_ROCM_USE_AITER": "1"}
    if needs.method is QuantMethod.FP8 and needs.method not in needs.accelerator.weight_only:
        return {"VLLM_USE_DEEP_GEMM": "1"}
    return {}


def _vendor_notes(needs: EngineNeeds) -> list[str]:
    if needs.accelerator.vendor is not Vendor.AMD:
        return []
    notes = [
        f"AITER is off by default in vLLM: {AITER_SLOWDOWNS}.",
        "If answers are garbled or experts fail to load, set VLLM_ROCM_USE_AITER_MOE=0: AITER's "
        "fused experts have known issues (ROCm/aiter 915, 1416, 2191, 5049).",
    ]
    if needs.method is None and needs.geometry.total_params < 100e9:
        notes.append(
            "Check the answers first: sgl-project/sglang 28244 reports garbled output of Qwen3-30B "
            "in bfloat16 with AITER."
        )
    return notes


def _moe_notes(needs: EngineNeeds) -> list[str]:
    layout = needs.layout
    notes: list[str] = []
    if not needs.geometry.is_moe:
        return notes
    if layout.expert_parallel and not layout.expert_load_balancing:
        notes.append(
            "All ranks wait for the rank with the busiest experts. If the expert load is uneven "
            "under your traffic, set layout.expert_load_balancing."
        )
    if layout.data_parallel_size > 1 and layout.nodes > 1:
        notes.append(
            "Across nodes, all2all_backend deepep_low_latency or deepep_high_throughput (on AMD: "
            "a mori backend) may be faster than allgather_reducescatter. Each needs an extra "
            "package."
        )
    if needs.method is QuantMethod.NVFP4:
        notes.append(
            "For NVFP4, older guides set VLLM_USE_FLASHINFER_MOE_FP4, which vLLM removed. "
            "moe_backend replaces it; its default is auto."
        )
    return notes
