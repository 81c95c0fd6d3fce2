"""Published parameter counts of Qwen's models follow from their shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwenfleet.cluster.models.catalog import CODER_30B, CODER_480B
from qwenfleet.cluster.models.geometry import (
    FP8_BLOCKS,
    Geometry,
    KVDtype,
    Quantization,
    QuantMethod,
)

FP8_480B = replace(CODER_480B, quantization=FP8_BLOCKS)
FP8_30B = replace(CODER_30B, quantization=FP8_BLOCKS)
NVFP4_480B = replace(CODER_480B, quantization=Quantization(QuantMethod.NVFP4, (1, 16)))


@pytest.mark.parametrize(
    ("name", "of_480b", "of_30b"),
    [
        ("total_params", 480_154_875_392, 30_532_122_624),
        ("active_params", 35_474_765_312, 3_353_032_704),
        ("active_params_without_embedding", 34_541_270_528, 3_041_867_776),
        ("attention_params_per_layer", 163_577_856, 18_874_368),
        ("expert_params", 47_185_920, 4_718_592),
        ("gate_params_per_layer", 983_040, 262_144),
        ("embedding_params", 933_494_784, 311_164_928),
        ("head_params", 933_494_784, 311_164_928),
        ("weight_bytes", 960_309_750_784, 61_064_245_248),
        ("linear_flops_per_token", 69_082_541_056, 6_083_735_552),
        ("attention_flops_per_pair", 3_047_424, 786_432),
    ],
)
def test_the_counts_of_both_sizes_follow_from_their_shapes(
    name: str, of_480b: int, of_30b: int
) -> None:
    assert (getattr(CODER_480B, name), getattr(CODER_30B, name)) == (of_480b, of_30b)


def test_without_embeddings_the_30b_has_the_29_9_billion_of_its_card() -> None:
    assert CODER_30B.total_params - 2 * CODER_30B.embedding_params == 29_909_792_768
    assert CODER_480B.total_params - 2 * CODER_480B.embedding_params == 478_287_885_824


def test_the_bfloat16_bytes_are_within_a_header_of_the_safetensors_index() -> None:
    """Hugging Face's index of Qwen3-30B-A3B says 61,064,216,576: the same but for 28 kB."""
    assert abs(CODER_30B.weight_bytes - 61_064_216_576) < 32_768


@pytest.mark.parametrize(
    ("geometry", "params", "blocks", "gib"),
    [(FP8_480B, 478_226_153_472, 29_188_608, 449.03), (FP8_30B, 29_896_998_912, 1_824_768, 29.03)],
)
def test_fp8_keeps_embedding_head_gates_and_norms_in_bfloat16(
    geometry: Geometry, params: int, blocks: int, gib: float
) -> None:
    """449 GiB is the 450G that the 480B's FP8 snapshot takes on disk."""
    assert (geometry.quantized_params, geometry.scale_blocks) == (params, blocks)
    assert geometry.weight_bytes / 2**30 == pytest.approx(gib, abs=0.005)


def test_nvfp4_fits_the_288_gb_of_the_recipe() -> None:
    """vllm-project/recipes, 2026-04-17: at least 288 GB of memory."""
    assert 0.9 * 288e9 < NVFP4_480B.weight_bytes < 288e9


@pytest.mark.parametrize(
    ("geometry", "bfloat16", "fp8"), [(CODER_480B, 253_952, 126_976), (CODER_30B, 98_304, 49_152)]
)
def test_the_kv_cache_of_one_token_has_the_published_size(
    geometry: Geometry, bfloat16: int, fp8: int
) -> None:
    assert geometry.kv_bytes_per_token() == bfloat16
    assert geometry.kv_bytes_per_token(KVDtype.FP8) == fp8


def test_a_tied_head_is_stored_once_but_still_multiplied() -> None:
    tied = replace(CODER_30B, tie_word_embeddings=True)
    assert tied.total_params == CODER_30B.total_params - CODER_30B.embedding_params
    assert tied.active_params_without_embedding == CODER_30B.active_params_without_embedding


def test_linear_bytes_per_param_add_up_to_the_quantized_bytes() -> None:
    stored = FP8_480B.quantized_params * FP8_480B.linear_bytes_per_param
    assert stored == FP8_480B.quantized_params + 2 * FP8_480B.scale_blocks
    assert CODER_480B.linear_bytes_per_param == 2
