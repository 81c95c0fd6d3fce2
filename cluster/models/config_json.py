"""The geometry of a model directory, from its Hugging Face config.json.

Sources: `configuration_{llama,qwen2,qwen3,qwen3_moe}.py` of transformers 5, whose newer keys
(`rope_parameters`, `num_local_experts`) are read as well as the older ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qwenfleet.cluster.errors import ModelSourceError
from qwenfleet.cluster.models.geometry import Geometry, Quantization, QuantMethod
from qwenfleet.cluster.plan_errors import PlanError

ARCHITECTURES: Final = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
HAVE_QK_NORM: Final = ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
HAVE_QKV_BIAS: Final = ("Qwen2ForCausalLM",)
"""Architectures with a bias regardless of `attention_bias`, which Qwen2's config does not have."""
COUNTED_AS_CONVERTED: Final = ("self_attn", "mlp.experts", "mlp.gate_", "mlp.up_", "mlp.down_")
"""Prefixes of the layers that `Geometry.quantized_params` counts as quantized."""
AGAIN: Final = "Copy it from the model again."
DEFAULT_ROPE_THETA: Final = 10_000.0
"""The default of transformers for all four architectures."""


def read_geometry(directory: str | Path) -> Geometry:
    """Read the config.json of a directory. Raises ModelSourceError if it cannot be read, and
    PlanError for a model that the planner does not support."""
    path = Path(directory) / "config.json"
    source = str(directory)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        remedy = "Name the directory that holds the model's files, not one above or below it."
        raise ModelSourceError(source, f"{path} does not exist", remedy) from e
    except (OSError, ValueError) as e:
        raise ModelSourceError(source, f"{path} cannot be read ({e})", AGAIN) from e
    if not isinstance(config, dict):
        remedy = AGAIN
        raise ModelSourceError(source, f"{path} does not contain a JSON object", remedy)
    return from_config(config, source)


def from_config(config: Mapping[str, Any], source: str) -> Geometry:
    """Return the geometry of a parsed config.json. `source` names it in errors.

    Raises PlanError for an unknown architecture, for a mix of dense layers and experts, for a size
    that is missing or not a positive number, and for impossible numbers of heads or experts.
    """
    architecture = _architecture(config, source)
    is_moe = architecture == "Qwen3MoeForCausalLM"
    if is_moe and (config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers")):
        raise PlanError(
            f"'{source}' mixes dense layers with experts (decoder_sparse_step "
            f"{config.get('decoder_sparse_step', 1)}, mlp_only_layers "
            f"{config.get('mlp_only_layers') or []})",
            "The planner supports only experts in every layer; set the layout yourself.",
        )
    heads, hidden = (
        _size(config, source, "num_attention_heads"),
        _size(config, source, "hidden_size"),
    )
    rope_key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = _section(config, source, rope_key)
    positions = _size(config, source, "max_position_embeddings")
    geometry = Geometry(
        architecture=architecture,
        num_layers=_size(config, source, "num_hidden_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=_size(config, source, "num_key_value_heads", default=heads),
        head_dim=_size(config, source, "head_dim", default=hidden // heads),
        vocab_size=_size(config, source, "vocab_size"),
        intermediate_size=_size(config, source, "intermediate_size"),
        num_experts=_size(config, source, "num_experts", "num_local_experts") if is_moe else 0,
        experts_per_token=_size(config, source, "num_experts_per_tok") if is_moe else 0,
        moe_intermediate_size=_size(config, source, "moe_intermediate_size") if is_moe else 0,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        max_position_embeddings=positions,
        rope_theta=_rope_theta(config, rope, source),
        has_qk_norm=architecture in HAVE_QK_NORM,
        has_qkv_bias=architecture in HAVE_QKV_BIAS or bool(config.get("attention_bias")),
        quantization=_quantization(config, source),
        long_context_tokens=_long_context_tokens(config, rope, positions, source),
        has_dual_chunk=bool(config.get("dual_chunk_attention_config")),
    )
    _check_counts(geometry, source)
    return geometry


def _check_counts(geometry: Geometry, source: str) -> None:
    """Check that KV heads divide the heads evenly, and that a token can use distinct experts."""
    heads, kv_heads = geometry.num_heads, geometry.num_kv_heads
    if heads % kv_heads:
        problem = f"is {kv_heads}, which does not divide num_attention_heads {heads},"
        raise _wrong("num_key_value_heads", problem, source)
    active, experts = geometry.experts_per_token, geometry.num_experts
    if active > experts:
        raise _wrong("num_experts_per_tok", f"is {active}, above num_experts {experts},", source)


def _architecture(config: Mapping[str, Any], source: str) -> str:
    named = config.get("architectures") or []
    if not isinstance(named, list):
        raise _wrong("architectures", f"is {named!r}, not a list", source)
    for architecture in named:
        if architecture in ARCHITECTURES:
            return str(architecture)
    raise PlanError(
        f"'{source}' has an unsupported architecture: {', '.join(map(str, named)) or 'not named'}",
        f"The planner supports {', '.join(ARCHITECTURES)}; set the layout yourself for others.",
    )


def _size(config: Mapping[str, Any], source: str, *keys: str, default: int | None = None) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        problem = "is missing" if value is None else f"is {value!r}, not a positive number"
        raise _wrong(keys[0], problem, source)
    return value


def _section(config: Mapping[str, Any], source: str, key: str) -> Mapping[str, Any]:
    """Return an object of the config.json; empty if it is missing or null."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise _wrong(key, f"is {found!r}, not an object", source)
    return found


def _number(value: object, name: str, source: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return value
    raise _wrong(name, f"is {value!r}, not a positive number", source)


def _rope_theta(config: Mapping[str, Any], rope: Mapping[str, Any], source: str) -> float:
    theta = config.get("rope_theta") or rope.get("rope_theta") or DEFAULT_ROPE_THETA
    return float(_number(theta, "rope_theta", source))


def _wrong(name: str, problem: str, source: str) -> PlanError:
    return PlanError(f"{name} {problem} in the config.json of '{source}'", AGAIN)


def _long_context_tokens(
    config: Mapping[str, Any], rope: Mapping[str, Any], positions: int, source: str
) -> int | None:
    """Return the context length with the config's own long-context method, or None without one.

    With YaRN it is the factor times the original length, as in vLLM (`config/model.py`, 0.32). With
    dual chunk attention max_position_embeddings already is the long length.
    """
    if config.get("dual_chunk_attention_config"):
        return positions
    if rope.get("rope_type", rope.get("type")) != "yarn":
        return None
    original = rope.get("original_max_position_embeddings") or positions
    original = _number(original, "original_max_position_embeddings", source)
    return int(original * _number(rope.get("factor", 1.0), "factor of YaRN", source))


def _quantization(config: Mapping[str, Any], source: str) -> Quantization | None:
    found = _section(config, source, "quantization_config")
    if not found:
        return None
    kept = found.get("modules_to_not_convert") or found.get("ignore") or []
    if not isinstance(kept, list):
        raise _wrong("modules_to_not_convert", f"is {kept!r}, not a list", source)
    unconverted = tuple(sorted({_layer_kind(str(name)) for name in kept}))
    left_out = [name for name in unconverted if name.startswith(COUNTED_AS_CONVERTED)]
    if left_out:
        raise PlanError(
            f"'{source}' leaves {', '.join(left_out)} unquantized, but the planner counts them as "
            "quantized",
            "Set the layout yourself.",
        )
    match found:
        case {"quant_method": "fp8", "weight_block_size": [int(rows), int(columns)]} if (
            rows > 0 and columns > 0
        ):
            return Quantization(QuantMethod.FP8, (rows, columns), _linears(unconverted))
        case {"quant_method": "modelopt", "quant_algo": "NVFP4"}:
            group = _size(found, source, "group_size", default=16)
            return Quantization(QuantMethod.NVFP4, (1, group), _linears(unconverted))
    raise PlanError(
        f"'{source}' is quantized as '{found.get('quant_method')}', in a format that the planner "
        "does not support",
        "It supports fp8 with weight_block_size, and modelopt's NVFP4; set the layout yourself.",
    )


def _layer_kind(name: str) -> str:
    """Return a layer's name without its index: `mlp.gate` for `model.layers.7.mlp.gate`."""
    head, _, tail = name.partition("layers.")
    return tail.partition(".")[2] if tail else head


def _linears(names: tuple[str, ...]) -> tuple[str, ...]:
    """Drop the norms, which some configs list although they are never quantized."""
    return tuple(name for name in names if not name.endswith("layernorm"))
