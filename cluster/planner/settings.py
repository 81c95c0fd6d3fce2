"""The vLLM settings of a plan's choice. Pure."""

from __future__ import annotations

from qwenfleet.cluster.planner.plan import Plan
from qwenfleet.cluster.vllm_settings.engine_settings import (
    EngineNeeds,
    EngineSettings,
    settings_for,
)


def settings(plan: Plan) -> EngineSettings:
    """Return arguments, environment and tool parser for the choice's engines."""
    request, choice = plan.request, plan.choice
    return settings_for(
        EngineNeeds(
            model_name=request.model.short_name,
            geometry=request.model.geometry,
            accelerator=request.machines.accelerator,
            layout=choice.layout,
            context_tokens=choice.max_model_len,
            kv_dtype=request.kv_dtype,
            sequences=choice.max_num_seqs,
            utilization=request.utilization,
        )
    )
