"""Memory of one GPU, compared with a table that was computed by hand from the same shapes.

The table uses weights from Qwen's config.json split by vLLM's rules, the GiB that torch sees on
each accelerator, 0.9 of them usable, 4 GiB reserved, and bfloat16 KV. It was checked against only
one figure: SGLang's published 131,072 tokens on 8 x H100 fit well within its 374 thousand.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import ACCELERATORS, Accelerator, find_accelerator
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import find_model
from qwenfleet.cluster.models.geometry import Geometry, KVDtype
from qwenfleet.cluster.planner.layouts import all_layouts
from qwenfleet.cluster.planner.memory import (
    LEAST_SEQUENCES,
    SEQUENCES,
    activation_bytes,
    gpu_memory,
    pipeline_layers,
    sequence_limit,
    stage_weight_bytes,
)
from qwenfleet.cluster.planner.rules import Rule, judge_memory, judge_shape
from qwenfleet.cluster.units import GIB

COLUMNS = ("H100", "H200", "B200", "MI300X", "MI325X", "MI355X")
NO_FIT = 0
ROWS: list[tuple[str, str, float, tuple[int | None, ...]]] = [
    ("qwen3-coder-480b-fp8", "TP8+EP8", 56.2, (374, 2219, 3394, 3799, 5747, 6721)),
    ("qwen3-coder-480b-fp8", "TP4xDP2+EP8", 57.8, (160, 1082, 1670, 1872, 2846, 3333)),
    ("qwen3-coder-480b-fp8", "DP8+EP8", 67.5, (NO_FIT, 230, 376, 427, 671, 792)),
    ("qwen3-coder-480b-fp8", "TP4", 112.3, (NO_FIT, 160, 748, 950, 1924, 2412)),
    ("qwen3-coder-480b", "TP8+EP8", 111.9, (NO_FIT, 336, 1511, 1916, 3864, 4838)),
    ("qwen3-coder-480b", "TP8xDP2+EP16@2", 57.4, (334, 2179, 3354, 3759, 5707, 6681)),
    ("qwen3-coder-30b-fp8", "TP1", 29.0, (418, 1014, 1393, 1524, 2153, 2467)),
    ("qwen3-coder-30b", "TP1", 56.9, (114, 709, 1089, 1220, 1849, 2163)),
]
PARALLEL = [Layout.parse(text) for text in ("TP1", "TP2", "TP4+EP4", "DP8+EP8", "TP8+EP8", "PP4")]
BF16_480B = find_model("qwen3-coder-480b").geometry
FP8_480B = find_model("qwen3-coder-480b-fp8").geometry
BF16_30B = find_model("qwen3-coder-30b").geometry


@pytest.mark.parametrize(("model", "layout", "weights_gib", "thousands"), ROWS)
def test_memory_matches_the_table(
    model: str, layout: str, weights_gib: float, thousands: tuple[int, ...]
) -> None:
    geometry = find_model(model).geometry
    for name, expected in zip(COLUMNS, thousands, strict=True):
        accelerator = find_accelerator(name)
        memory = gpu_memory(geometry, Layout.parse(layout), accelerator)
        assert memory.weight_bytes / GIB == pytest.approx(weights_gib, abs=0.06)
        assert memory.kv_tokens / 1000 == pytest.approx(expected, abs=1.1)
        verdict = judge_memory(accelerator, memory, 8192)
        assert [b.rule for b in verdict.breaches] == ([] if expected else [Rule.MEMORY])


@pytest.mark.parametrize(("name", "thousands"), [("H100", 842), ("H200", 2033), ("MI300X", 3054)])
def test_the_30b_over_two_gpus_matches_the_table_within_a_percent(
    name: str, thousands: int
) -> None:
    """The table counts 0.3 GiB more weights than vLLM's split gives (half of one embedding)."""
    memory = gpu_memory(BF16_30B, Layout.parse("TP2"), find_accelerator(name))
    assert thousands < memory.kv_tokens / 1000 < thousands * 1.01


def test_fp8_kv_doubles_the_tokens() -> None:
    h200, layout = find_accelerator("H200"), Layout.parse("TP8+EP8")
    full = gpu_memory(FP8_480B, layout, h200).kv_tokens
    half = gpu_memory(FP8_480B, layout, h200, kv_dtype=KVDtype.FP8).kv_tokens
    assert half == pytest.approx(2 * full, abs=32)


def test_tp_beyond_the_kv_heads_adds_no_tokens() -> None:
    per_token = [
        gpu_memory(BF16_30B, Layout.parse(f"TP{tp}"), find_accelerator("H200")).kv_bytes_per_token
        for tp in (1, 2, 4, 8)
    ]
    assert per_token == [98_304, 49_152, 24_576, 24_576]


def test_a_dense_model_is_split_over_tp_alone() -> None:
    dense = replace(BF16_30B, num_experts=0, experts_per_token=0, moe_intermediate_size=0)
    one, two = (stage_weight_bytes(dense, Layout.parse(text), 0) for text in ("TP1", "TP2"))
    assert one == dense.weight_bytes
    assert one / 2 < two < 0.51 * one


def test_a_tied_head_is_stored_twice_across_pipeline_stages() -> None:
    tied = replace(BF16_30B, tie_word_embeddings=True)
    assert stage_weight_bytes(tied, Layout(), 0) == tied.weight_bytes
    halves = [stage_weight_bytes(tied, Layout.parse("PP2"), stage) for stage in (0, 1)]
    assert sum(halves) == tied.weight_bytes + 2 * tied.embedding_params


@pytest.mark.parametrize(
    ("layers", "stages", "split"),
    [(62, 2, [31, 31]), (62, 4, [15, 16, 16, 15]), (62, 3, [21, 21, 20]), (7, 2, [4, 3])],
)
def test_layers_are_split_as_in_vllm(layers: int, stages: int, split: list[int]) -> None:
    assert pipeline_layers(layers, stages) == split


def test_activations_of_published_models_fit_in_the_reserve() -> None:
    for layout in PARALLEL:
        for geometry in (BF16_480B, BF16_30B):
            assert 0 < activation_bytes(geometry, layout) < 4 * GIB


def test_the_parts_of_a_gpus_memory_add_up() -> None:
    memory = gpu_memory(FP8_480B, Layout.parse("TP8+EP8"), find_accelerator("H200"))
    parts = memory.weight_bytes + memory.reserve_bytes + memory.kv_bytes + memory.free_bytes
    assert parts == memory.total_bytes
    assert memory.reserve_bytes == 4 * GIB


def test_sequences_use_whole_blocks() -> None:
    memory = gpu_memory(BF16_30B, Layout(), find_accelerator("H100"))
    assert memory.sequences(memory.kv_tokens) == 1
    assert memory.sequences(memory.kv_tokens + 1) == 0
    assert memory.sequences(memory.kv_tokens // 2 - 8) in (2, 1)


geometries = st.builds(
    replace,
    st.sampled_from([BF16_480B, FP8_480B, BF16_30B]),
    num_layers=st.integers(1, 100),
    num_experts=st.sampled_from([8, 64, 128, 160]),
)
machines = st.builds(
    Machines, st.sampled_from(ACCELERATORS), st.integers(1, 3), st.sampled_from([1, 2, 4, 8])
)


@given(geometries, machines, st.data())
def test_the_weights_of_all_ranks_add_up_to_at_least_the_model(
    geometry: Geometry, there: Machines, data: st.DataObject
) -> None:
    layout = data.draw(st.sampled_from(list(all_layouts(there, with_pipeline=True))))
    if not judge_shape(geometry, layout, there.accelerator).is_legal:
        return
    ranks = layout.tensor_parallel_size * layout.data_parallel_size
    stages = range(layout.pipeline_parallel_size)
    held = ranks * sum(stage_weight_bytes(geometry, layout, stage) for stage in stages)
    assert held >= geometry.weight_bytes


@given(geometries, st.sampled_from(PARALLEL), st.sampled_from(ACCELERATORS), st.floats(1, 4))
def test_more_memory_never_holds_fewer_tokens(
    geometry: Geometry, layout: Layout, accelerator: Accelerator, factor: float
) -> None:
    less = gpu_memory(geometry, layout, accelerator)
    larger = replace(accelerator, memory_gib=accelerator.memory_gib * factor)
    assert gpu_memory(geometry, layout, larger).kv_tokens >= less.kv_tokens


@given(st.integers(0, 100_000), st.integers(1, 100_000))
def test_the_sequence_limit_rounds_up_to_a_power_of_two(held: int, wanted: int) -> None:
    limit = sequence_limit(held, wanted)
    most = max(held, wanted)
    assert limit.bit_count() == 1
    assert LEAST_SEQUENCES <= limit <= SEQUENCES
    assert limit >= min(most, SEQUENCES)
    assert limit < max(2 * most, LEAST_SEQUENCES + 1)
