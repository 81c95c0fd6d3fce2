from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.models.tiny_qwen3_moe import CONFIG
from qwenfleet.cluster.plan_errors import NoLayoutFits, PlanError
from qwenfleet.cluster.planner.fleet_defaults import completed
from qwenfleet.cluster.planner.request import FleetLoad

FP8_480B = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
BF16_480B = "Qwen/Qwen3-Coder-480B-A35B-Instruct"
BF16_30B = "Qwen/Qwen3-Coder-30B-A3B-Instruct"
MI300X = "AMD-Instinct-MI300X-OAM"


def served(source: str, **settings: Any) -> ModelConfig:
    tree = {"models": [{"id": "coder", "source": source, **settings}]}
    return completed(FleetConfig.model_validate(tree)).models[0]


@pytest.mark.parametrize(
    ("source", "form"), [(FP8_480B, "chat"), ("tiny-qwen3-moe", "raw"), ("unknown/model", "raw")]
)
def test_the_card_chooses_how_a_middle_is_asked_for(source: str, form: str) -> None:
    assert served(source).fill_in_the_middle == form
    assert served(source, fill_in_the_middle="raw").fill_in_the_middle == "raw"


@pytest.mark.parametrize("accelerator", ["H100", "H200", "B200", MI300X])
def test_a_known_model_without_a_layout_gets_the_planned_one(accelerator: str) -> None:
    model = served(FP8_480B, accelerator=accelerator)
    assert model.layout is not None
    assert model.layout.name == "TP8+EP8"
    assert model.max_model_len == 262_144


def test_each_pool_gets_a_layout_and_the_smallest_context() -> None:
    pools = [{"name": "a", "accelerator": "H100"}, {"name": "b", "accelerator": MI300X}]
    model = served(FP8_480B, pools=pools)
    assert [pool.layout.name for pool in model.pools if pool.layout] == ["TP8+EP8", "TP8+EP8"]
    small = [{"name": "a", "accelerator": "H100", "layout": {"tensor_parallel_size": 1}}]
    assert served(BF16_30B, pools=small).max_model_len == 113_696


AITER = {"VLLM_ROCM_USE_AITER": "1"}
DEEP_GEMM = {"VLLM_USE_DEEP_GEMM": "1"}


@pytest.mark.parametrize(("accelerator", "env"), [(MI300X, AITER), ("H200", DEEP_GEMM)])
@pytest.mark.parametrize("layout", [{}, {"layout": {"tensor_parallel_size": 4}}])
def test_a_model_gets_the_settings_of_a_written_plan(
    accelerator: str, env: dict[str, str], layout: dict[str, Any]
) -> None:
    model = served(FP8_480B, accelerator=accelerator, **layout)
    assert model.env == env
    assert model.engine_args["gpu_memory_utilization"] == 0.9
    assert model.engine_args["max_num_batched_tokens"] == 8192
    assert {"max_num_seqs"} == set(model.engine_args) - {
        "gpu_memory_utilization",
        "max_num_batched_tokens",
    }


def test_the_operators_settings_override_the_plan() -> None:
    own = {"env": {"VLLM_ROCM_USE_AITER": "0", "A": "b"}, "engine_args": {"max_num_seqs": 7}}
    model = served(FP8_480B, accelerator=MI300X, **own)
    assert model.env == own["env"]
    assert model.engine_args["max_num_seqs"] == 7
    assert model.engine_args["max_num_batched_tokens"] == 8192


def test_pool_settings_follow_its_gpus_and_the_operator_overrides_them() -> None:
    pools = [
        {"name": "a", "accelerator": "H100", "engine_args": {"max_num_seqs": 7}},
        {"name": "b", "accelerator": MI300X, "env": {"B": "pool"}},
    ]
    shared = {"env": {"B": "model"}, "engine_args": {"max_num_batched_tokens": 4096}}
    model = served(FP8_480B, pools=pools, **shared)
    first, second = model.engine_pools
    assert (first.env, second.env) == (DEEP_GEMM | {"B": "model"}, AITER | {"B": "pool"})
    assert first.engine_args["max_num_seqs"] == 7
    assert second.engine_args["max_num_seqs"] == 512
    for pool in (first, second):
        assert pool.engine_args["max_num_batched_tokens"] == 4096
    assert (model.env, model.engine_args) == tuple(shared.values())


def test_completing_a_fleet_twice_changes_nothing() -> None:
    tree = {"models": [{"id": "coder", "source": FP8_480B, "accelerator": MI300X}]}
    once = completed(FleetConfig.model_validate(tree))
    assert completed(once) == once


def test_the_operators_layout_is_kept_with_the_context_that_fits() -> None:
    model = served(BF16_30B, accelerator="H100", layout={"tensor_parallel_size": 1})
    assert model.layout is not None
    assert (model.layout.name, model.max_model_len) == ("TP1", 113_696)
    shorter = served(
        BF16_30B, accelerator="H100", layout={"tensor_parallel_size": 1}, max_model_len=200
    )
    assert shorter.max_model_len == 200


def test_the_operators_layout_need_not_hold_the_assumed_load() -> None:
    """With this memory share, one H100 holds fewer tokens than the default 8,704."""
    tight = {"layout": {}, "engine_args": {"gpu_memory_utilization": 0.774}}
    model = served(BF16_30B, accelerator="H100", **tight)
    assert model.max_model_len is not None
    assert 0 < model.max_model_len < FleetLoad().sequence_tokens
    with pytest.raises(NoLayoutFits) as caught:
        served(BF16_30B, accelerator="H100", **tight, max_model_len=8704)
    assert caught.value.rule == "context"


@pytest.mark.parametrize(
    ("source", "settings", "rule"),
    [
        (FP8_480B, {"layout": {"tensor_parallel_size": 5}}, "heads"),
        (FP8_480B, {"layout": {"tensor_parallel_size": 4}}, "memory"),
        (BF16_480B, {}, "memory"),
        (BF16_30B, {"layout": {}, "max_model_len": 262_144}, "context"),
        (FP8_480B, {"layout": {"tensor_parallel_size": 16, "nodes": 2}}, "nodes"),
    ],
)
def test_a_layout_that_cannot_load_is_refused_by_its_rule(
    source: str, settings: dict[str, Any], rule: str
) -> None:
    with pytest.raises(NoLayoutFits) as caught:
        served(source, accelerator="H100", **settings)
    assert caught.value.rule == rule


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(PlanError, match="no long-context method"):
        served(FP8_480B, accelerator="H200", max_model_len=500_000)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_model_len": 500_000}, "Lower max_model_len to 262,144 or less, or set engine_args."),
        ({"max_model_len": 1}, "Raise max_model_len."),
        (
            {"engine_args": {"gpu_memory_utilization": 1.5}},
            "engine_args.gpu_memory_utilization is 1.5",
        ),
        (
            {"layout": {"tensor_parallel_size": 5}},
            "What works: layout: {tensor_parallel_size: 1, data_parallel_size: 5, expert_parallel:",
        ),
        (
            {"layout": {"data_parallel_size": 8, "expert_parallel": True}, "max_model_len": 262144},
            "; or max_model_len: 229504 with layout: {tensor_parallel_size: 1, data_parallel_size",
        ),
        (
            {"source": BF16_480B, "accelerator": "H100"},
            f"What works: source: {FP8_480B} with layout: {{tensor_parallel_size: 8, ",
        ),
        (
            {"source": BF16_480B, "accelerator": "H100"},
            "data_parallel_size: 2, expert_parallel: true, nodes: 2} on 2 x 8 x H100; or "
            "accelerator: H200 with layout: {tensor_parallel_size: 8, expert_parallel: true}.",
        ),
    ],
)
def test_errors_name_configuration_keys(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        served(**{"source": FP8_480B, "accelerator": "H200", **settings})
    assert words in str(caught.value)
    assert "--" not in str(caught.value)


def test_fp8_kv_and_the_memory_share_are_used() -> None:
    layout = {"tensor_parallel_size": 1}
    roomy = {"kv_cache_dtype": "fp8", "gpu_memory_utilization": 0.95}
    model = served(BF16_30B, accelerator="H100", layout=layout, engine_args=roomy)
    assert model.max_model_len == 262_144


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("smollm2-135m-instruct", {}),
        (FP8_480B, {}),
        ("acme/model", {"accelerator": "H100"}),
        (FP8_480B, {"accelerator": "L4"}),
        (BF16_480B, {"accelerator": "H100", "engine_args": {"quantization": "fp8"}}),
        (FP8_480B, {"accelerator": "H100", "engine": "scripted"}),
    ],
)
def test_models_that_the_planner_does_not_know_are_unchanged(
    source: str, settings: dict[str, Any]
) -> None:
    assert served(source, **settings).layout is None


def test_a_directory_is_planned_from_its_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert served(str(tmp_path), accelerator="H100").layout is not None
    with pytest.raises(NoLayoutFits, match="4 attention heads do not divide evenly over TP3"):
        served(str(tmp_path), accelerator="H100", layout={"tensor_parallel_size": 3})


def test_a_directory_that_contradicts_its_name_is_refused(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "Qwen3-Coder-480B-A35B-Instruct-FP8"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(PlanError, match="says num_layers 2"):
        served(str(directory), accelerator="H100")
