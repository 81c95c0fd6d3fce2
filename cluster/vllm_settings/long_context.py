"""Contexts beyond a model's own: the method that works on vLLM 0.32, and those that do not. Pure.

YaRN works if rope_theta is passed too. Qwen's own recipe for a million tokens is dual chunk
attention, whose backend vLLM removed with its V0 engine (pull request 25351, release 0.11.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.models.catalog import find_published
from qwenfleet.cluster.models.geometry import Geometry
from qwenfleet.cluster.plan_errors import PlanError

MAX_YARN_FACTOR: Final = 4
"""Largest factor in Qwen's model cards."""
DUAL_CHUNK: Final = "dual_chunk_attention_config"
NO_DUAL_CHUNK: Final = (
    "Qwen's recipe for 1,010,000 tokens (config_1m.json, dual chunk attention) has had no backend "
    "in vLLM since 0.11"
)


def yarn_overrides(geometry: Geometry, context_tokens: int) -> dict[str, JsonValue]:
    """Return `hf_overrides` that extend RoPE to a context; empty if the model supports it already.

    Raises PlanError beyond four times the model's own length.
    """
    native = geometry.max_position_embeddings
    if context_tokens <= max(native, geometry.max_context_tokens):
        return {}
    factor = -(-context_tokens // native)
    if factor > MAX_YARN_FACTOR:
        raise PlanError(
            f"a context of {context_tokens:,} tokens is more than {MAX_YARN_FACTOR} times the "
            f"{native:,} that the model was trained on",
            f"Use a context of {MAX_YARN_FACTOR * native:,} tokens or less.",
        )
    return {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": geometry.rope_theta,
            "factor": float(factor),
            "original_max_position_embeddings": native,
        }
    }


def yarn_notes(geometry: Geometry, context_tokens: int) -> list[str]:
    """Notes for the operator on serving beyond the model's own length."""
    if context_tokens <= max(geometry.max_position_embeddings, geometry.max_context_tokens):
        return []
    return [
        "YaRN applies to every prompt, short ones too, and harms those a little: serve contexts "
        f"above {geometry.max_position_embeddings:,} tokens from a separate model entry.",
        f"{NO_DUAL_CHUNK}. Qwen's results with it do not apply to YaRN.",
    ]


def check_long_context(
    geometry: Geometry,
    max_model_len: int | None,
    engine_args: Mapping[str, JsonValue],
    env: Mapping[str, str],
) -> None:
    """Raise PlanError if a long context has no method, or one that fails."""
    overrides = engine_args.get("hf_overrides")
    given = overrides if isinstance(overrides, dict) else {}
    _check_overrides(geometry, given)
    native = geometry.max_context_tokens
    if max_model_len is None or max_model_len <= native:
        return
    if DUAL_CHUNK in given:
        raise PlanError(
            f"max_model_len {max_model_len:,} is above the model's {native:,}, and "
            f"hf_overrides.{DUAL_CHUNK} only hides that limit from vLLM: nothing extends the "
            f"context beyond {native:,} tokens",
            f"Set max_model_len to {native:,} or less, or use YaRN: `qwenfleet plan` prints the "
            "hf_overrides for it.",
        )
    stretched = _stretched_tokens(given, geometry)
    if max_model_len > stretched:
        allowed = (
            "; VLLM_ALLOW_LONG_MAX_MODEL_LEN only silences vLLM's check"
            if (env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN"))
            else ""
        )
        raise PlanError(
            f"max_model_len {max_model_len:,} is above the {stretched:,} tokens that the model "
            f"supports, and no long-context method is configured{allowed}",
            f"Set max_model_len to {stretched:,} or less, or extend RoPE with hf_overrides "
            f"{yarn_overrides(geometry, max_model_len)}.",
        )


def check_config(config: FleetConfig) -> None:
    """Check every pool of every model in the catalog. Only Hub names are checked, because the files
    of a directory may set a method that is unknown here."""
    for model in config.models:
        known = find_published(model.resolved_source)
        if known is None or model.resolved_source != known.name:
            continue
        for pool in model.engine_pools:
            check_long_context(known.geometry, pool.max_model_len, pool.engine_args, pool.env)


def _check_overrides(geometry: Geometry, given: Mapping[str, JsonValue]) -> None:
    if "rope_scaling" in given:
        raise PlanError(
            "hf_overrides.rope_scaling drops rope_theta, so vLLM fails to load the model",
            f"Use hf_overrides.rope_parameters with rope_theta: {geometry.rope_theta:.0f} instead.",
        )
    parameters = given.get("rope_parameters")
    if isinstance(parameters, dict) and "rope_theta" not in parameters:
        raise PlanError(
            "hf_overrides.rope_parameters has no rope_theta: vLLM then uses 10000 and silently "
            "returns wrong answers",
            f"Add rope_theta: {geometry.rope_theta:.0f}.",
        )
    if given.get(DUAL_CHUNK):
        raise PlanError(
            f"hf_overrides.{DUAL_CHUNK} turns on dual chunk attention: {NO_DUAL_CHUNK}",
            "Remove it. For contexts beyond the model's own length, use YaRN.",
        )


def _stretched_tokens(given: Mapping[str, JsonValue], geometry: Geometry) -> int:
    """Longest context of the model with these overrides."""
    parameters = given.get("rope_parameters")
    if not isinstance(parameters, dict) or parameters.get("rope_type") != "yarn":
        return geometry.max_context_tokens
    factor = parameters.get("factor")
    original = parameters.get("original_max_position_embeddings", geometry.max_position_embeddings)
    if not isinstance(factor, int | float) or not isinstance(original, int | float):
        return geometry.max_context_tokens
    return int(factor * original)
