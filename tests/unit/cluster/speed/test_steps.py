from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import A100, B200, H100, H200, MI300X
from qwenfleet.cluster.models.catalog import CODER_30B, CODER_480B
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.plan_errors import PlanError
from qwenfleet.cluster.speed.cost import Cause, Parameter, Workload
from qwenfleet.cluster.speed.measurements import FP8_30B, FP8_480B
from qwenfleet.cluster.speed.steps import (
    EngineShape,
    decode_step,
    link_seconds,
    prefill,
    weight_bytes_read,
)

ONES = dict.fromkeys(Parameter, 1.0)


def shape(geometry=FP8_480B, accelerator=H200, layout="TP8+EP8", kv=KVDtype.AUTO):
    return EngineShape(geometry, accelerator, Layout.parse(layout), kv)


@pytest.mark.parametrize(
    ("geometry", "tokens", "gigabytes"),
    [
        (FP8_480B, 1, 35.5),
        (FP8_480B, 16, 274),
        (FP8_480B, 64, 463),
        (FP8_480B, 256, 480),
        (FP8_30B, 1, 3.37),
        (FP8_30B, 16, 20.2),
        (FP8_30B, 64, 30.1),
        (FP8_30B, 256, 30.5),
    ],
)
def test_a_step_of_one_gpu_reads_as_many_weights_as_published(geometry, tokens, gigabytes):
    read = weight_bytes_read(shape(geometry, layout="TP1"), tokens, 0)
    assert read / 1e9 == pytest.approx(gigabytes, rel=0.015)


@pytest.mark.parametrize("layout", ["TP1", "TP8", "TP8+EP8", "DP8+EP8", "TP4xDP2+EP8", "TP8xPP2"])
def test_no_gpu_reads_more_than_the_whole_model(layout):
    read = weight_bytes_read(shape(layout=layout), 4096, 0)
    assert read <= FP8_480B.weight_bytes


def test_tensor_parallel_gpus_share_the_weights():
    one = weight_bytes_read(shape(layout="TP1"), 64, 0)
    eight = weight_bytes_read(shape(layout="TP8"), 64, 0)
    assert one / 8 < eight < one / 8 * 1.01, "routers and norms are in every rank"


def test_data_parallel_ranks_each_read_all_of_attention():
    tensor = weight_bytes_read(shape(layout="TP8+EP8"), 64, 0)
    data = weight_bytes_read(shape(layout="DP8+EP8"), 64, 0)
    attention = 62 * 163_577_856 * 7 / 8
    assert data - tensor > attention


def test_kv_heads_limit_the_split_of_the_cache():
    load = Workload(32, 30_000, 1000)
    seconds = {
        layout: decode_step(shape(layout=layout), load).by_cause(ONES)[Cause.KV_CACHE]
        for layout in ("TP8+EP8", "TP16+EP16@2")
    }
    assert seconds["TP16+EP16@2"] == pytest.approx(seconds["TP8+EP8"])


def test_an_fp8_cache_is_read_in_half_the_time():
    load = Workload(32, 30_000, 1000)
    full, half = (
        decode_step(shape(kv=kv), load).by_cause(ONES)[Cause.KV_CACHE]
        for kv in (KVDtype.AUTO, KVDtype.FP8)
    )
    assert half == pytest.approx(full / 2)


def test_ranks_on_two_nodes_use_the_network():
    within = link_seconds(shape(layout="DP16+EP16"), 64)
    across = link_seconds(shape(layout="DP16+EP16@2"), 64)
    assert across == pytest.approx(within * 450 / 50)


def test_one_gpu_has_no_links():
    assert link_seconds(shape(layout="TP1"), 64) == 0


def test_all_reduce_moves_as_much_as_a_ring():
    # 2 per layer, 2 (n - 1) / n of 64 tokens x 6144 x 2 bytes, 62 layers, 450 GB/s.
    expected = 62 * 2 * 2 * 7 / 8 * 64 * 6144 * 2 / 450e9
    assert link_seconds(shape(layout="TP8"), 64) == pytest.approx(expected)


def test_prefill_counts_linear_and_causal_attention_flops():
    cost = prefill(shape(CODER_30B, H100, "TP1"), 8192)
    expected = (8192 * 6_083_735_552 + 8192**2 / 2 * 786_432) / 989e12
    assert cost.seconds(ONES) == pytest.approx(expected, rel=1e-3)


def test_a_prompt_alone_uses_one_rank_for_attention():
    layout = shape(layout="DP8+EP8")
    shared, alone = (prefill(layout, 8192, is_alone=a).seconds(ONES) for a in (False, True))
    assert shared * 2 < alone < shared * 8
    same = shape(layout="TP8+EP8")
    assert prefill(same, 8192, is_alone=True) == prefill(same, 8192)


@pytest.mark.parametrize(
    ("geometry", "accelerator", "rate"),
    [
        (FP8_480B, H200, 1979e12),
        (CODER_480B, H200, 989e12),
        (FP8_480B, A100, 312e12),
        (FP8_480B, MI300X, 2615e12),
    ],
)
def test_weights_use_the_fastest_type_of_the_gpu(geometry, accelerator, rate):
    assert shape(geometry, accelerator, "TP1").flops_per_s == rate


@pytest.mark.parametrize(
    ("accelerator", "layer", "memory"),
    [
        (H100, Parameter.LAYER_NVIDIA, Parameter.MEMORY_HOPPER),
        (B200, Parameter.LAYER_NVIDIA, Parameter.MEMORY_BLACKWELL),
        (MI300X, Parameter.LAYER_AMD, Parameter.MEMORY_AMD),
    ],
)
def test_each_accelerator_has_its_parameters(accelerator, layer, memory):
    of = shape(accelerator=accelerator)
    assert (of.layer_parameter, of.memory_parameter) == (layer, memory)


@given(
    st.sampled_from(["TP8+EP8", "TP8", "DP8+EP8", "TP4xDP2+EP8", "TP8xPP2+EP8@2"]),
    st.floats(1, 2000),
    st.floats(0, 500),
    st.floats(0, 1),
)
def test_more_sequences_never_make_a_step_shorter(layout, concurrency, more, skew):
    few, many = (
        decode_step(shape(layout=layout), Workload(c, 1000, 100, skew)).seconds(ONES)
        for c in (concurrency, concurrency + more)
    )
    assert few <= many * (1 + 1e-9)


def test_a_dense_model_reads_its_mlp():
    dense = replace(CODER_30B, num_experts=0, experts_per_token=0)
    read = weight_bytes_read(shape(dense, H100, "TP1"), 1, 0)
    assert read == pytest.approx(2 * dense.active_params_without_embedding, rel=1e-3)


@pytest.mark.parametrize(
    ("wrong", "reported"),
    [
        ({"concurrency": 0}, "concurrent requests is 0"),
        ({"prompt_tokens": -1}, "the prompt length is -1"),
        ({"output_tokens": 0}, "the output length is 0"),
        ({"routing_skew": 1.5}, "routing_skew is 1.5"),
    ],
)
def test_an_impossible_load_is_refused(wrong, reported):
    fine = {"concurrency": 1, "prompt_tokens": 1, "output_tokens": 1}
    with pytest.raises(PlanError, match=reported):
        Workload(**{**fine, **wrong})
