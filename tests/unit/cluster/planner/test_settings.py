import json
import re

import pytest
import yaml

from qwenfleet.cli import __main__ as cli
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.plan_errors import PlanError
from qwenfleet.cluster.vllm_settings.long_context import check_config

CODER = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"


def plan(capsys, *options):
    assert cli.main(["plan", *options]) == 0
    return capsys.readouterr().out


def test_the_calibration_needs_no_model(capsys):
    printed = plan(capsys, "--calibration")
    assert "median error" in printed
    assert "Left out:" in printed


def test_the_calibration_can_be_written_as_json(capsys):
    assert len(json.loads(plan(capsys, "--calibration", "--output", "json"))["points"]) == 49


def test_a_plan_without_a_model_is_refused(capsys):
    assert cli.main(["plan", "--accelerator", "H100"]) == 1
    assert capsys.readouterr().err == "qwenfleet: no model is given. Set --model.\n"


@pytest.mark.parametrize(
    ("accelerator", "env"),
    [("MI300X", {"VLLM_ROCM_USE_AITER": "1"}), ("H200", {"VLLM_USE_DEEP_GEMM": "1"})],
)
def test_a_planned_fleet_has_the_settings_of_its_gpus(capsys, accelerator, env):
    written = plan(capsys, "--model", CODER, "--accelerator", accelerator, "--output", "fleet.yaml")
    (model,) = FleetConfig.model_validate(yaml.safe_load(written)).models
    assert model.env == env
    assert model.engine_args["max_num_seqs"] == {"MI300X": 512, "H200": 256}[accelerator]
    assert model.engine_args["gpu_memory_utilization"] == 0.9


@pytest.mark.parametrize(
    ("accelerator", "layout", "limit"),
    [("H100", "TP8+EP8", 64), ("H200", "DP8+EP8", 32), ("H200", "TP4xDP2+EP8", 128)],
)
def test_the_written_sequence_limit_is_the_printed_one(capsys, accelerator, layout, limit):
    options = ("--model", CODER, "--accelerator", accelerator, "--layout", layout)
    printed = plan(capsys, *options)
    written = yaml.safe_load(plan(capsys, *options, "--output", "fleet.yaml"))
    assert written["models"][0]["engine_args"]["max_num_seqs"] == limit
    assert f"max_num_seqs is {limit}: " in printed
    at_once = int(re.findall(r"^ +8,192 +(\d+) ", printed, re.M)[0])
    ranks = written["models"][0]["layout"].get("data_parallel_size", 1)
    assert limit // 2 < at_once / ranks <= limit


def test_notes_on_the_settings_are_printed(capsys):
    printed = plan(capsys, "--model", CODER, "--accelerator", "MI300X")
    assert "AITER is off by default" in printed


def test_vllm_arguments_include_the_tool_parser(capsys):
    printed = plan(capsys, "--model", CODER, "--accelerator", "H200", "--output", "vllm-args")
    assert "--tool-call-parser qwen3_coder" in printed
    assert "--max-num-batched-tokens 8192" in printed


def fleet(**model):
    return FleetConfig.model_validate({"models": [{"id": "coder", "source": CODER, **model}]})


def test_a_fleet_with_more_context_than_the_model_is_refused():
    with pytest.raises(PlanError, match="no long-context method"):
        check_config(fleet(max_model_len=1_010_000))
    check_config(fleet(max_model_len=262_144))
    check_config(fleet())


def test_a_model_directory_is_not_checked():
    check_config(fleet(max_model_len=1_010_000, source="/models/qwen3-coder-480b-fp8"))
    check_config(FleetConfig())
