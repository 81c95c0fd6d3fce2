from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import ACCELERATORS, find_accelerator
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import CATALOG, find_model
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.plan_errors import Alternative, NoLayoutFits, PlanError, Quantity
from qwenfleet.cluster.planner.memory import SEQUENCES
from qwenfleet.cluster.planner.plan import Plan
from qwenfleet.cluster.planner.request import FleetLoad, Goal, PlanRequest
from qwenfleet.cluster.planner.search import plan, search


def asked(
    model: str, accelerator: str, nodes: int = 1, node: int = 8, **more: object
) -> PlanRequest:
    machines = Machines(find_accelerator(accelerator), nodes, node)
    return PlanRequest(find_model(model), machines, **more)  # type: ignore[arg-type]


def planned(model: str, accelerator: str, nodes: int = 1, node: int = 8, **more: object) -> Plan:
    return plan(asked(model, accelerator, nodes, node, **more))


RECIPES = "vllm-project/recipes Qwen3-Coder-480B-A35B-Instruct.yaml, 2026-04-17"
README = "QwenLM/Qwen3-Coder README"
COOKBOOK = "SGLang cookbook, Qwen3-Coder"
"""For FP8 480B it uses tp8 ep2; vLLM's closest layout is TP8+EP8. Its 8,192 tokens are what was
tried there, not a memory limit. GB200 is not in the catalog. `--page-size 32` and
`--moe-runner-backend` are SGLang options that do not affect the layout."""
SGLANG_H100 = "SGLang on 8 x H100, 2026-09-15"
PUBLISHED = [
    ("qwen3-coder-480b", "H200", 8, "TP8+EP8", 32_000, RECIPES),
    ("qwen3-coder-480b", "MI300X", 8, "TP8+EP8", 32_000, RECIPES),
    ("qwen3-coder-480b", "MI325X", 8, "TP8+EP8", 32_000, RECIPES),
    ("qwen3-coder-480b", "MI355X", 8, "TP8+EP8", 32_000, RECIPES),
    ("qwen3-coder-480b-fp8", "H200", 8, "DP8+EP8", 131_072, RECIPES),
    ("qwen3-coder-480b-fp8", "MI300X", 8, "DP8+EP8", 131_072, RECIPES),
    ("qwen3-coder-480b-fp8", "MI325X", 8, "DP8+EP8", 131_072, RECIPES),
    ("qwen3-coder-480b-fp8", "MI355X", 8, "DP8+EP8", 131_072, RECIPES),
    ("qwen3-coder-480b-fp8", "H200", 4, "TP4", 131_072, README),
    ("qwen3-coder-480b-fp8", "H200", 8, "TP8+EP8", 262_144, README),
    ("qwen3-coder-480b-fp8", "H100", 8, "TP8+EP8", 131_072, SGLANG_H100),
    ("qwen3-coder-480b-fp8", "MI300X", 8, "TP8+EP8", 8_192, COOKBOOK),
    ("qwen3-coder-480b-fp8", "MI325X", 8, "TP8+EP8", 8_192, COOKBOOK),
    ("qwen3-coder-480b-fp8", "MI355X", 8, "TP8+EP8", 8_192, COOKBOOK),
    ("qwen3-coder-480b", "MI300X", 8, "TP8", 8_192, COOKBOOK),
    ("qwen3-coder-480b", "MI325X", 8, "TP8", 8_192, COOKBOOK),
    ("qwen3-coder-480b", "MI355X", 8, "TP8", 8_192, COOKBOOK),
    ("qwen3-coder-480b-fp8", "B200", 8, "TP8+EP8", 8_192, COOKBOOK),
    ("qwen3-coder-30b", "MI300X", 1, "TP1", 8_192, COOKBOOK),
    ("qwen3-coder-30b-fp8", "MI300X", 1, "TP1", 8_192, COOKBOOK),
    ("qwen3-coder-30b", "MI325X", 1, "TP1", 8_192, COOKBOOK),
    ("qwen3-coder-30b-fp8", "MI325X", 1, "TP1", 8_192, COOKBOOK),
    ("qwen3-coder-30b", "MI355X", 1, "TP1", 8_192, COOKBOOK),
    ("qwen3-coder-30b-fp8", "MI355X", 1, "TP1", 8_192, COOKBOOK),
    ("qwen3-coder-30b-fp8", "H100", 1, "TP1", 262_144, "card, and 29 GiB of weights"),
]


@pytest.mark.parametrize(("model", "accelerator", "gpus", "layout", "context", "source"), PUBLISHED)
def test_published_deployments_are_legal_and_fit(
    model: str, accelerator: str, gpus: int, layout: str, context: int, source: str
) -> None:
    found = planned(
        model,
        accelerator,
        node=gpus,
        layout=Layout.parse(layout),
        context_tokens=context,
        load=FleetLoad(prompt_tokens=1024),
    )
    assert found.choice.layout.name == layout, source
    assert not found.choice.judgment.is_discouraged


def test_the_nvfp4_recipe_fits_a_b200_server_with_an_fp8_kv_cache() -> None:
    """RECIPES: `--kv-cache-dtype fp8`, at least 288 GB, without a layout: the planner chooses."""
    found = planned("nvidia/Qwen3-Coder-480B-A35B-Instruct-NVFP4", "B200", kv_dtype=KVDtype.FP8)
    weights = found.choice.num_gpus * found.choice.memory.weight_bytes
    assert found.choice.max_model_len == 262_144
    assert weights < 288e9
    assert not found.choice.judgment.is_discouraged
    assert any("config.json was not seen" in text for text in found.warnings)


@pytest.mark.parametrize("layout", ["TP8", "DP8"])
def test_sglangs_nvfp4_layout_fits_b200_with_1_or_8_attention_ranks(layout: str) -> None:
    """COOKBOOK: tp8 ep1 `--enable-dp-attention` without a number of ranks. One rank is TP8; eight
    are DP8, in which vLLM also splits experts over all ranks."""
    found = planned("qwen3-coder-480b-nvfp4", "B200", layout=Layout.parse(layout))
    assert found.choice.layout.name == layout


def test_sglangs_tp8_ep2_is_refused_with_vllms_equivalent() -> None:
    """COOKBOOK: FP8 480B on MI300X, MI325X, MI355X, B200 and GB200. vLLM has no EP within TP."""
    with pytest.raises(ValueError, match=r"vLLM uses TP x DP = 8\. Write TP8\+EP8$"):
        Layout.parse("TP8+EP2")


@pytest.mark.parametrize("accelerator", ["MI300X", "MI325X", "MI355X"])
def test_nvfp4_on_amd_is_refused_with_what_works(accelerator: str) -> None:
    with pytest.raises(NoLayoutFits, match=r"\(rule quantization\)\. What works: TP8") as caught:
        planned("qwen3-coder-480b-nvfp4", accelerator)
    assert caught.value.rule == "quantization"


REFUSED = [
    ("qwen3-coder-480b-fp8", "H100", 1, "DP8+EP8", None, "memory"),
    ("qwen3-coder-480b-fp8", "H100", 1, "TP4", None, "memory"),
    ("qwen3-coder-480b", "H100", 1, "TP8+EP8", None, "memory"),
    ("qwen3-coder-480b-fp8", "H200", 1, "DP8+EP8", 262_144, "context"),
    ("qwen3-coder-480b-fp8", "H100", 1, "TP4xDP2+EP8", 262_144, "context"),
    ("qwen3-coder-30b", "H100", 1, "TP1", 262_144, "context"),
    ("qwen3-coder-480b-fp8", "H200", 4, "TP8xDP4", None, "blocks"),
    ("qwen3-coder-480b-fp8", "H200", 2, "TP16+EP16@2", None, "nodes"),
    ("qwen3-coder-480b", "H100", 1, "TP8xDP2+EP16@2", None, "nodes"),
    ("qwen3-coder-480b", "H200", 1, "TP5", None, "heads"),
]


@pytest.mark.parametrize(("model", "accelerator", "nodes", "layout", "context", "rule"), REFUSED)
def test_a_layout_that_does_not_fit_is_refused_by_its_rule(
    model: str, accelerator: str, nodes: int, layout: str, context: int | None, rule: str
) -> None:
    with pytest.raises(NoLayoutFits) as caught:
        planned(model, accelerator, nodes, layout=Layout.parse(layout), context_tokens=context)
    assert caught.value.rule == rule
    assert f"(rule {rule})" in str(caught.value)


CHOICES = [
    ("qwen3-coder-480b-fp8", "MI300X", 1, "TP8+EP8"),
    ("qwen3-coder-480b-fp8", "H200", 1, "TP8+EP8"),
    ("qwen3-coder-480b-fp8", "H100", 1, "TP8+EP8"),
    ("qwen3-coder-480b", "MI300X", 1, "TP8+EP8"),
    ("qwen3-coder-480b", "H200", 1, "TP8+EP8"),
    ("qwen3-coder-480b", "H100", 2, "TP8xDP2+EP16@2"),
]


@pytest.mark.parametrize(("model", "accelerator", "nodes", "layout"), CHOICES)
def test_without_predictions_the_layout_with_the_most_room_is_chosen(
    model: str, accelerator: str, nodes: int, layout: str
) -> None:
    assert planned(model, accelerator, nodes).choice.layout.name == layout


def test_bfloat16_480b_on_one_node_of_h100_is_refused_with_what_works() -> None:
    with pytest.raises(NoLayoutFits) as caught:
        planned("qwen3-coder-480b", "H100")
    reported = str(caught.value)
    assert "weights need 1" in reported
    assert "may use only 71.3 of the 79.2 GiB of one H100 (rule memory)" in reported
    assert "Instruct-FP8 in TP8+EP8 on the same machines" in reported
    assert "TP8xDP2+EP16@2 on 2 x 8 x H100" in reported
    assert "TP8+EP8 on 8 x H200" in reported


def test_a_context_too_long_for_one_gpu_is_refused_with_one_that_fits() -> None:
    with pytest.raises(NoLayoutFits, match=r"a context of 113,696 tokens in TP1") as caught:
        planned("qwen3-coder-30b", "H100", 1, 1, context_tokens=262_144)
    assert caught.value.changes[0] == Alternative(Quantity.CONTEXT, 113_696, "TP1", "1 x H100")


def test_a_refused_layout_suggests_the_best_on_the_same_machines() -> None:
    with pytest.raises(NoLayoutFits, match=r"What works: TP8\+EP8 on the same machines"):
        planned("qwen3-coder-480b-fp8", "H100", layout=Layout.parse("DP8+EP8"))


def test_a_model_that_no_machine_holds_is_reported() -> None:
    geometry = replace(CATALOG[0].geometry, num_layers=5000)
    huge = replace(CATALOG[0], name="/models/huge", geometry=geometry)
    with pytest.raises(NoLayoutFits, match="No machine known to the planner can hold it"):
        plan(PlanRequest(huge, Machines(find_accelerator("H100"))))


def test_without_a_context_less_than_the_models_own_is_used_with_a_warning() -> None:
    one = planned("qwen3-coder-30b", "H100", 1, 1)
    assert one.choice.max_model_len == 113_696
    assert any("113,696 tokens of the model's 262,144" in text for text in one.warnings)
    whole = planned("qwen3-coder-480b-fp8", "H200")
    assert whole.choice.max_model_len == 262_144
    assert "TP4" in [c.layout.name for c in whole.candidates if not c.holds_wanted_context]


def test_an_engine_that_cannot_hold_one_request_of_the_load_is_refused() -> None:
    with pytest.raises(NoLayoutFits, match=r"one sequence of 150,512 must fit \(rule context\)"):
        planned("qwen3-coder-30b", "H100", 1, 1, load=FleetLoad(prompt_tokens=150_000))


def test_fp8_kv_holds_a_context_that_bfloat16_does_not() -> None:
    with pytest.raises(NoLayoutFits, match="an fp8 KV cache in TP1"):
        planned("qwen3-coder-30b", "H100", 1, 1, context_tokens=200_000)
    found = planned("qwen3-coder-30b", "H100", 1, 1, context_tokens=200_000, kv_dtype=KVDtype.FP8)
    assert found.choice.layout.name == "TP1"


def test_pipeline_parallelism_is_used_only_if_nothing_else_fits() -> None:
    usual = planned("qwen3-coder-480b-fp8", "H100")
    assert all(one.layout.pipeline_parallel_size == 1 for one in usual.candidates)
    odd = planned("qwen3-coder-480b-fp8", "H100", 1, 7)
    assert odd.choice.layout.name == "PP7"
    assert any("stages wait" in text for text in odd.warnings)


def test_the_cost_goal_uses_the_fewest_gpus_that_carry_the_load() -> None:
    small = FleetLoad(concurrency=4)
    found = planned("qwen3-coder-30b-fp8", "H100", goal=Goal.COST, load=small)
    assert (found.choice.layout.name, found.choice.num_gpus) == ("TP1", 1)
    more = planned("qwen3-coder-30b-fp8", "H100", goal=Goal.COST, load=FleetLoad(concurrency=100))
    assert more.choice.num_gpus > 1


def test_a_load_beyond_the_kv_cache_gets_a_warning() -> None:
    found = planned("qwen3-coder-480b-fp8", "H100", load=FleetLoad(concurrency=1000))
    assert found.choice.concurrency < 1000
    assert any("1,000 wait" in text for text in found.warnings)


def test_no_engine_is_planned_above_its_sequence_limit() -> None:
    short = FleetLoad(concurrency=100_000, prompt_tokens=100, output_tokens=100)
    found = planned("qwen3-coder-30b-fp8", "MI355X", load=short)
    for one in found.candidates:
        assert one.concurrency == SEQUENCES * one.layout.data_parallel_size
    assert any("at most 1,024 on each" in text for text in found.warnings)


def test_amds_weak_sources_get_a_warning() -> None:
    assert any("weak source" in text for text in planned("qwen3-coder-480b-fp8", "MI300X").warnings)
    assert planned("qwen3-coder-480b-fp8", "H200").warnings == ()


def test_limits_of_the_a100_get_warnings() -> None:
    reported = planned("qwen3-coder-480b-fp8", "A100", kv_dtype=KVDtype.FP8).warnings
    for part in ("40 GB card", "FP8 KV cache", "Marlin"):
        assert any(part in text for text in reported)


requests = st.builds(
    PlanRequest,
    model=st.sampled_from(CATALOG),
    machines=st.builds(
        Machines, st.sampled_from(ACCELERATORS), st.integers(1, 3), st.sampled_from([1, 2, 4, 8])
    ),
    context_tokens=st.sampled_from([None, 32_768, 262_144]),
    kv_dtype=st.sampled_from(KVDtype),
    goal=st.sampled_from(Goal),
)


@given(requests)
def test_no_candidate_exceeds_memory_or_machines_or_splits_a_tensor_parallel_group(
    request: PlanRequest,
) -> None:
    candidates, refused = search(request)
    for one in candidates:
        held = one.memory.weight_bytes + one.memory.reserve_bytes
        kv = one.max_model_len * one.memory.kv_bytes_per_token
        assert held + kv <= one.memory.usable_bytes < one.memory.total_bytes
        assert one.num_gpus <= request.machines.num_gpus
        assert one.layout.gpus_per_node % one.layout.tensor_parallel_size == 0
        assert one.max_model_len >= (request.context_tokens or 8192)
    assert all(one.breaches for one in refused)


@given(requests, st.floats(1, 3))
def test_more_memory_never_removes_a_layout(request: PlanRequest, factor: float) -> None:
    accelerator = request.machines.accelerator
    larger = replace(accelerator, memory_gib=accelerator.memory_gib * factor)
    before = {one.layout for one in search(request)[0] if one.layout.pipeline_parallel_size == 1}
    roomy = replace(request, machines=replace(request.machines, accelerator=larger))
    assert before <= {one.layout for one in search(roomy)[0]}


@settings(max_examples=30)
@given(requests)
def test_every_request_gets_a_plan_or_a_rule_with_alternatives(request: PlanRequest) -> None:
    if search(request)[0]:
        found = plan(request)
        assert found.choice.layout.name in found.reason
    else:
        with pytest.raises(NoLayoutFits, match=r"\(rule \S+\)\. What works: ") as caught:
            plan(request)
        assert "--" not in str(caught.value)
        for change in caught.value.changes:
            assert find_accelerator(change.machines.rpartition(" x ")[2]).name in change.machines
            assert Layout.parse(change.layout).name == change.layout


def test_errors_of_the_planner_are_refusals() -> None:
    assert issubclass(NoLayoutFits, PlanError)
