import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.hardware.accelerators import A100, B200, H100, H200, MI300X
from qwenfleet.cluster.models.catalog import CATALOG, CODER_30B
from qwenfleet.cluster.models.geometry import KVDtype, Quantization, QuantMethod
from qwenfleet.cluster.plan_errors import PlanError
from qwenfleet.cluster.speed.measurements import FP8_480B
from qwenfleet.cluster.vllm_settings.engine_settings import (
    EngineNeeds,
    settings_for,
    tool_call_parser,
)

FP8 = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"


def needs(**changes):
    fine = EngineNeeds(FP8, FP8_480B, H200, Layout.parse("TP8+EP8"), 131_072)
    return replace(fine, **changes)


def installed(name: str) -> str:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vllm is not installed, so its names cannot be compared")
    return (Path(spec.origin).parent / name).read_text()


ALL = [
    needs(sequences=24, kv_dtype=KVDtype.FP8, context_tokens=600_000),
    needs(accelerator=MI300X),
    needs(layout=Layout.parse("DP16+EP16@2")),
]


@pytest.mark.parametrize("of", ALL)
def test_every_name_exists_in_the_installed_vllm(of):
    found = settings_for(of)
    arguments = set(re.findall(r"^    ([a-z0-9_]+):", installed("engine/arg_utils.py"), re.M))
    for name in found.engine_args:
        assert name in arguments
    for name in found.env:
        assert f'"{name}"' in installed("envs.py")


@pytest.mark.parametrize("parser", ["qwen3_coder", "hermes"])
def test_the_parsers_exist_in_vllm(parser):
    assert f'"{parser}": (' in installed("tool_parsers/__init__.py")


def test_names_in_notes_exist_in_vllm():
    reported = " ".join(note for of in ALL for note in settings_for(of).notes)
    assert "VLLM_ROCM_USE_AITER_MOE=0" in reported
    assert '"VLLM_ROCM_USE_AITER_MOE"' in installed("envs.py")
    for backend in ("deepep_low_latency", "deepep_high_throughput", "allgather_reducescatter"):
        assert backend in reported
        assert f'"{backend}"' in installed("config/parallel.py")


@pytest.mark.parametrize("of", ALL)
def test_the_settings_are_valid_in_a_fleet(of):
    found = settings_for(of)
    model = ModelConfig(
        id="coder",
        tool_call_parser=found.tool_call_parser,
        engine_args=dict(found.engine_args),
        env=dict(found.env),
    )
    assert model.engine_args == found.engine_args


def test_amd_enables_aiter_and_notes_its_issues():
    found = settings_for(needs(accelerator=MI300X))
    assert found.env == {"VLLM_ROCM_USE_AITER": "1"}
    assert any("off by default" in note for note in found.notes)
    small = needs(model_name="Qwen/Qwen3-Coder-30B-A3B-Instruct", geometry=CODER_30B)
    reported = settings_for(replace(small, accelerator=MI300X, layout=Layout())).notes
    assert any("28244" in note for note in reported)


@pytest.mark.parametrize(
    ("accelerator", "geometry", "env"),
    [
        (H100, FP8_480B, {"VLLM_USE_DEEP_GEMM": "1"}),
        (B200, FP8_480B, {"VLLM_USE_DEEP_GEMM": "1"}),
        (A100, FP8_480B, {}),
        (H200, CODER_30B, {}),
    ],
)
def test_deep_gemm_is_set_for_fp8_on_nvidia_with_fp8_units(accelerator, geometry, env):
    assert settings_for(needs(accelerator=accelerator, geometry=geometry)).env == env


def test_a_long_context_sets_yarn_and_notes_its_limits():
    found = settings_for(needs(context_tokens=600_000))
    overrides = json.loads(json.dumps(found.engine_args["hf_overrides"]))
    assert overrides["rope_parameters"]["rope_theta"] == 10_000_000
    assert any("no backend" in note for note in found.notes)
    assert "hf_overrides" not in settings_for(needs()).engine_args
    with pytest.raises(PlanError, match="more than 4 times"):
        settings_for(needs(context_tokens=2_000_000))


def test_nvfp4_notes_correct_older_guides():
    nvfp4 = replace(FP8_480B, quantization=Quantization(QuantMethod.NVFP4, (1, 16)))
    reported = settings_for(needs(geometry=nvfp4, accelerator=B200)).notes
    assert any("VLLM_USE_FLASHINFER_MOE_FP4" in note for note in reported)


@pytest.mark.parametrize(
    ("name", "parser"),
    [
        (FP8, "qwen3_coder"),
        ("/models/qwen3-coder-30b-fp8/", "qwen3_coder"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "hermes"),
        ("meta-llama/Llama-3.1-8B-Instruct", None),
    ],
)
def test_the_parser_matches_the_chat_template(name, parser):
    assert tool_call_parser(name) == parser


def test_the_catalog_and_the_model_cards_agree_on_parsers():
    from qwenfleet.cluster.models.cards import defaults_for

    for known in CATALOG:
        assert tool_call_parser(known.name) == defaults_for(known.name).tool_call_parser


def test_vllms_defaults_are_not_set():
    found = settings_for(needs())
    assert set(found.engine_args) == {"gpu_memory_utilization", "max_num_batched_tokens"}
