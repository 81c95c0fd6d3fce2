from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.load import load
from qwenfleet.cluster.hardware.accelerators import ACCELERATORS, Accelerator, find_accelerator
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import find_model
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.models.tiny_qwen3_moe import CONFIG
from qwenfleet.cluster.plan_report.files import Format, vllm_notes, write
from qwenfleet.cluster.planner.fleet_defaults import completed
from qwenfleet.cluster.planner.plan import Plan
from qwenfleet.cluster.planner.request import LongContext, PlanRequest
from qwenfleet.cluster.planner.search import plan
from qwenfleet.cluster.planner.speed import speed_of


def of(model: str, accelerator: str, nodes: int = 1, **more: Any) -> Plan:
    machines = Machines(find_accelerator(accelerator), nodes)
    return plan(PlanRequest(find_model(model), machines, **more), speed_of)


@pytest.mark.parametrize("accelerator", ACCELERATORS, ids=lambda one: one.name)
@pytest.mark.parametrize("model", ["qwen3-coder-480b-fp8", "qwen3-coder-30b"])
def test_the_written_fleet_is_valid_for_serve(
    tmp_path: Path, model: str, accelerator: Accelerator
) -> None:
    found = of(model, accelerator.name)
    file = tmp_path / "fleet.yaml"
    file.write_text(write(found, Format.FLEET), encoding="utf-8")
    fleet = load(file)
    (served,) = fleet.models
    assert served.layout == found.choice.layout
    assert served.accelerator == accelerator.ray_name
    assert served.replicas.min == found.choice.engines
    assert served.engine_args["gpu_memory_utilization"] == 0.9
    (again,) = completed(fleet).models
    assert (again.layout, again.max_model_len) == (served.layout, found.choice.max_model_len)


def test_a_model_directory_keeps_the_parser_of_its_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "our-qwen3-coder"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(directory)
    for name in (str(directory), "~/our-qwen3-coder", "."):
        (model,) = yaml.safe_load(write(of(name, "H100"), Format.FLEET))["models"]
        assert model["id"] == "our-qwen3-coder"
        assert model["tool_call_parser"] == "qwen3_coder"
        assert "~" not in write(of(name, "H100"), Format.VLLM_ARGS)


def test_helm_values_have_the_same_tree_under_fleet() -> None:
    found = of("qwen3-coder-480b-fp8", "MI300X")
    values = yaml.safe_load(write(found, Format.VALUES))
    assert list(values) == ["fleet"]
    assert values["fleet"] == yaml.safe_load(write(found, Format.FLEET))
    FleetConfig.model_validate(values["fleet"])


def test_a_written_file_starts_with_the_reason() -> None:
    found = of("qwen3-coder-480b-fp8", "H200")
    first, *rest = write(found, Format.FLEET).splitlines()
    assert first.startswith("# Written by `qwenfleet plan`: TP8+EP8, ")
    assert not any(line.startswith("#") for line in rest)


def test_vllm_arguments_are_one_line() -> None:
    text = write(of("qwen3-coder-480b-fp8", "H200"), Format.VLLM_ARGS)
    assert text.count("\n") == 1
    model, *words = shlex.split(text)
    assert model == "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
    for pair in (
        ["--tensor-parallel-size", "8"],
        ["--max-model-len", "262144"],
        ["--gpu-memory-utilization", "0.9"],
        ["--tool-call-parser", "qwen3_coder"],
    ):
        assert words[words.index(pair[0]) :][:2] == pair
    assert "--enable-expert-parallel" in words
    assert not {"--data-parallel-size", "--nnodes"} & set(words)


def test_vllm_arguments_set_nodes_ranks_and_kv_dtype_if_not_default() -> None:
    found = of("qwen3-coder-480b", "H100", 2, kv_dtype=KVDtype.FP8)
    words = shlex.split(write(found, Format.VLLM_ARGS))
    reported = {name: words[words.index(name) + 1] for name in words if name.startswith("--")}
    layout = found.choice.layout
    assert reported["--nnodes"] == "2"
    assert reported["--data-parallel-size"] == str(layout.data_parallel_size)
    assert reported["--kv-cache-dtype"] == "fp8"
    assert ["--master-addr" in note for note in vllm_notes(found)] == [True]
    assert vllm_notes(of("qwen3-coder-480b", "H200")) == []


def test_json_has_every_candidate_with_its_range_and_every_refusal_with_its_rule() -> None:
    found = of("qwen3-coder-480b-fp8", "H100")
    tree = json.loads(write(found, Format.JSON))
    assert tree["choice"] == tree["candidates"][0]["layout"] == "TP8+EP8"
    for one in tree["candidates"]:
        low, high = one["predicted"]["output_tokens_per_s"]
        assert 0 < low < high
    assert {breach["rule"] for one in tree["refused"] for breach in one["breaches"]} >= {"memory"}
    assert tree["machines"] == {"accelerator": "H100", "nodes": 1, "gpus_per_node": 8}


def test_a_yarn_context_is_written_with_its_overrides(tmp_path: Path) -> None:
    found = of(
        "qwen3-coder-30b-fp8", "H200", context_tokens=1_000_000, long_context=LongContext.YARN
    )
    file = tmp_path / "fleet.yaml"
    file.write_text(write(found, Format.FLEET), encoding="utf-8")
    (served,) = load(file).models
    overrides = served.engine_args["hf_overrides"]
    assert isinstance(overrides, dict)
    rope = overrides["rope_parameters"]
    assert isinstance(rope, dict)
    assert (rope["rope_theta"], rope["factor"]) == (10_000_000, 4.0)
    assert served.max_model_len == 1_000_000
