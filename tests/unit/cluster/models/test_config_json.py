from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cluster.errors import ModelSourceError
from qwenfleet.cluster.models.catalog import CODER_30B, find_model
from qwenfleet.cluster.models.config_json import from_config, read_geometry
from qwenfleet.cluster.models.geometry import FP8_BLOCKS, Quantization, QuantMethod
from qwenfleet.cluster.models.tiny_qwen3_moe import CONFIG
from qwenfleet.cluster.plan_errors import PlanError

CODER_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5472,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151_936,
    "rope_theta": 10_000_000,
    "max_position_embeddings": 262_144,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
    "rope_scaling": None,
}
FP8_CONFIG = {
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": [
        "lm_head",
        "model.layers.0.input_layernorm",
        "model.layers.0.mlp.gate",
        "model.layers.47.mlp.gate",
    ],
}


def test_a_published_config_gives_the_geometry_of_the_catalog() -> None:
    assert from_config(CODER_CONFIG, "coder") == CODER_30B


def test_qwens_fp8_is_read_with_its_unconverted_layers() -> None:
    found = from_config(CODER_CONFIG | {"quantization_config": FP8_CONFIG}, "coder")
    assert found.quantization == FP8_BLOCKS
    assert found.quantization.unconverted == FP8_BLOCKS.unconverted


def test_modelopts_nvfp4_is_read() -> None:
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    found = from_config(CODER_CONFIG | {"quantization_config": config}, "coder")
    assert found.quantization == Quantization(QuantMethod.NVFP4, (1, 16))
    assert found.quantization.unconverted == ("lm_head",)


def test_the_newer_keys_of_transformers_give_the_same_geometry() -> None:
    newer = {k: v for k, v in CODER_CONFIG.items() if k not in ("rope_theta", "num_experts")}
    newer |= {"num_local_experts": 128, "rope_parameters": {"rope_theta": 10_000_000}}
    assert from_config(newer, "coder") == CODER_30B


def test_yarn_in_the_config_extends_the_context() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262_144}
    found = from_config(CODER_CONFIG | {"rope_scaling": yarn}, "coder")
    assert (found.max_position_embeddings, found.max_context_tokens) == (262_144, 1_048_576)


def test_the_tiny_model_of_the_tests_is_read_from_its_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = read_geometry(tmp_path)
    assert (found.num_layers, found.num_experts, found.head_dim) == (2, 8, 64)


@pytest.mark.parametrize(
    ("architecture", "has_qk_norm", "has_bias"),
    [
        ("LlamaForCausalLM", False, False),
        ("Qwen2ForCausalLM", False, True),
        ("Qwen3ForCausalLM", True, False),
    ],
)
def test_dense_models_differ_in_norms_and_biases(
    architecture: str, has_qk_norm: bool, has_bias: bool
) -> None:
    config = {k: v for k, v in CODER_CONFIG.items() if k not in ("head_dim", "num_experts")}
    found = from_config(config | {"architectures": [architecture]}, "dense")
    assert (found.has_qk_norm, found.has_qkv_bias) == (has_qk_norm, has_bias)
    assert (found.num_experts, found.head_dim) == (0, 64)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            "MixtralForCausalLM.*supports LlamaForCausalLM",
        ),
        ({"architectures": []}, "architecture: not named"),
        ({"mlp_only_layers": [0]}, r"mixes dense layers.*mlp_only_layers \[0\]"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, not a positive number"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"num_attention_heads": "32"}, "num_attention_heads is '32'"),
        ({"architectures": "Qwen3MoeForCausalLM"}, "architectures is 'Qwen3Moe.*not a list"),
        ({"rope_theta": "x"}, "rope_theta is 'x', not a positive number"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', not an object"),
        ({"rope_scaling": {"type": "yarn", "factor": None}}, "factor of YaRN is None"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "factor of YaRN is '4'"),
        ({"rope_scaling": {"type": "yarn", "factor": float("nan")}}, "factor of YaRN is nan"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8', not an object"),
        ({"quantization_config": FP8_CONFIG | {"weight_block_size": [0, 0]}}, "does not support"),
        (
            {"quantization_config": FP8_CONFIG | {"modules_to_not_convert": 5}},
            "modules_to_not_convert is 5, not a list",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "modelopt",
                    "quant_algo": "NVFP4",
                    "group_size": "a",
                }
            },
            "group_size is 'a', not a positive number",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized as 'awq'"),
        (
            {"num_key_value_heads": 5},
            "num_key_value_heads is 5, which does not divide num_attention_heads 32, in the",
        ),
        (
            {"num_experts_per_tok": 129},
            "num_experts_per_tok is 129, above num_experts 128, in the config.json of 'coder'",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "weight_block_size"),
        (
            {
                "quantization_config": {
                    **FP8_CONFIG,
                    "modules_to_not_convert": ["model.layers.*.self_attn*"],
                }
            },
            r"leaves self_attn\* unquantized",
        ),
    ],
)
def test_an_unsupported_config_is_refused_with_the_reason(
    change: dict[str, Any], reported: str
) -> None:
    with pytest.raises(PlanError, match=reported):
        from_config(CODER_CONFIG | change, "coder")


@pytest.mark.parametrize(
    ("text", "reported"),
    [(None, "does not exist"), ("{", "cannot be read"), ("[]", "does not contain a JSON obj")],
)
def test_a_directory_without_a_readable_config_is_refused(
    tmp_path: Path, text: str | None, reported: str
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelSourceError, match=reported):
        read_geometry(tmp_path)


def test_an_unquantized_directory_named_fp8_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "Qwen3-Coder-30B-A3B-Instruct-FP8"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CODER_CONFIG))
    with pytest.raises(PlanError, match=r"says quantization None, but .* has fp8 in blocks"):
        find_model(str(directory))
