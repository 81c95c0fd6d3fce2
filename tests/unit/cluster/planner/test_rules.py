from __future__ import annotations

import re
from dataclasses import replace

import pytest

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import A100, B200, H200, MI300X
from qwenfleet.cluster.models.catalog import CODER_30B, CODER_480B
from qwenfleet.cluster.models.geometry import FP8_BLOCKS, Geometry, Quantization, QuantMethod
from qwenfleet.cluster.planner.rules import Judgment, Rule, judge_nodes, judge_shape

FP8_480B = replace(CODER_480B, quantization=FP8_BLOCKS)
FP8_30B = replace(CODER_30B, quantization=FP8_BLOCKS)
NVFP4_480B = replace(CODER_480B, quantization=Quantization(QuantMethod.NVFP4, (1, 16)))
DENSE = replace(CODER_30B, num_experts=0, experts_per_token=0, moe_intermediate_size=0)
FP8_DENSE = replace(DENSE, quantization=FP8_BLOCKS)


def judged(geometry: Geometry, layout: str) -> Judgment:
    return judge_shape(geometry, Layout.parse(layout), H200)


@pytest.mark.parametrize(
    ("geometry", "layout", "rule", "reported"),
    [
        (CODER_480B, "TP5", Rule.HEADS, "96 attention heads do not divide evenly over TP5"),
        (
            CODER_480B,
            "TP3",
            Rule.KV_HEADS,
            "TP3 is neither a divisor nor a multiple of the 8",
        ),
        (CODER_480B, "PP63", Rule.LAYERS, "62 layers are fewer than the 63 stages"),
        (
            CODER_480B,
            "TP8xDP8+EP64",
            Rule.EXPERTS,
            "160 experts do not divide evenly over 64",
        ),
        (
            CODER_480B,
            "DP3",
            Rule.INTERMEDIATE,
            "size 2,560 does not divide evenly over 3 ranks",
        ),
        (CODER_480B, "TP6", Rule.VOCABULARY, r"vocabulary of 151,936 .* over TP6"),
        (FP8_480B, "TP8xDP4", Rule.BLOCKS, "is 80 each.*common divisor 16 is below 32"),
        (DENSE, "TP2+EP2", Rule.EXPERTS, "this model is dense"),
        (DENSE, "DP2", Rule.DATA_PARALLEL, "run that many engines"),
        (FP8_DENSE, "TP8", Rule.BLOCKS, "intermediate_size 5,472 over 8 ranks is 684 each"),
        (replace(FP8_30B, head_dim=64), "TP4", Rule.BLOCKS, "key projection .* 64 rows"),
    ],
)
def test_layouts_that_vllm_refuses_are_refused_with_numbers(
    geometry: Geometry, layout: str, rule: Rule, reported: str
) -> None:
    found = [breach for breach in judged(geometry, layout).breaches if breach.rule is rule]
    assert len(found) == 1
    assert re.search(reported, found[0].sentence), found[0].sentence


@pytest.mark.parametrize("layout", ["TP1", "TP2", "TP4", "TP8+EP8", "TP4xDP2+EP8", "DP8+EP8"])
def test_the_published_480b_fp8_layouts_have_no_remarks(layout: str) -> None:
    """QwenLM/Qwen3-Coder README: FP8 with --tp 4, or --tp 8 and expert parallelism."""
    assert judged(FP8_480B, layout) == Judgment()


@pytest.mark.parametrize(
    ("geometry", "layout", "block"),
    [(FP8_480B, "TP8", 64), (FP8_30B, "TP4", 64), (FP8_30B, "TP8", 32)],
)
def test_misaligned_fp8_blocks_load_but_are_slow_since_vllm_0_29(
    geometry: Geometry, layout: str, block: int
) -> None:
    verdict = judged(geometry, layout)
    assert verdict.is_legal
    assert verdict.is_discouraged
    assert f"split blocks to {block} " in verdict.notes[-1].sentence


def test_kv_heads_are_copied_if_there_are_more_ranks() -> None:
    verdict = judged(CODER_30B, "TP8")
    assert [(n.rule, n.is_discouraged) for n in verdict.notes] == [(Rule.KV_HEADS, False)]
    assert "4 KV heads, so each head is stored 2 times" in verdict.notes[0].sentence


def test_uneven_pipeline_stages_get_a_note() -> None:
    assert "15+16+16+15" in judged(CODER_480B, "PP4").notes[0].sentence


def test_fp8_on_an_a100_is_stored_but_not_multiplied() -> None:
    verdict = judge_shape(FP8_480B, Layout.parse("TP8+EP8"), A100)
    assert (verdict.is_legal, verdict.is_discouraged) == (True, True)
    assert "Marlin" in verdict.notes[0].sentence


def test_nvfp4_weights_are_refused_without_matrix_units() -> None:
    refused = judge_shape(NVFP4_480B, Layout.parse("TP8+EP8"), MI300X)
    assert [b.rule for b in refused.breaches] == [Rule.QUANTIZATION]
    assert "nvfp4, but MI300X has matrix units only for bf16, fp8" in refused.breaches[0].sentence
    assert judge_shape(NVFP4_480B, Layout.parse("TP8+EP8"), B200) == Judgment()


@pytest.mark.parametrize(
    ("layout", "nodes", "node", "reported"),
    [
        ("TP16+EP16@2", 2, 8, "group of 16 would span nodes: each node holds 8"),
        ("TP8@2", 2, 8, "group of 8 would span nodes: each node holds 4"),
        ("TP8", 2, 4, "group of 8 would span nodes: each node holds 4"),
        ("DP8+EP8@2", 2, 8, "asks for 2 nodes, but its 8 GPUs fit on 1 with 8 GPUs each"),
        ("DP8+EP8", 2, 4, "needs 8 GPUs per node, but a node has 4"),
        ("TP8xDP2+EP16@2", 1, 8, "needs 16 GPUs on 2 nodes; available nodes: 1"),
    ],
)
def test_layouts_that_cannot_be_placed_are_refused(
    layout: str, nodes: int, node: int, reported: str
) -> None:
    verdict = judge_nodes(Layout.parse(layout), nodes=nodes, gpus_per_node=node)
    assert [b.rule for b in verdict.breaches] == [Rule.NODES]
    assert reported in verdict.breaches[0].sentence
