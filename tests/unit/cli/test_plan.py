from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwenfleet.cli import plan, plan_options
from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.models.tiny_qwen3_moe import CONFIG
from qwenfleet.cluster.plan_errors import NoLayoutFits, PlanError
from qwenfleet.cluster.plan_report import table

H100 = {
    "Alive": True,
    "NodeManagerHostname": "a",
    "Resources": {"GPU": 8.0, "accelerator_type:H100": 1.0},
}
MI300X = {
    "Alive": True,
    "NodeManagerHostname": "b",
    "Resources": {"GPU": 8.0, "accelerator_type:AMD-Instinct-MI300X-OAM": 1.0},
}
CODER = ("--model", "qwen3-coder-480b-fp8")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command with these options; return the exit status and what it printed."""

    def call(*options: str, ray: list[dict[str, Any]] | None = None) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        plan_options.add(parser.add_subparsers())
        parsed = parser.parse_args(["plan", *options])
        status = plan.run(parsed, lambda address: ray or [])
        return status, capsys.readouterr().out

    return call


def test_the_table_shows_candidates_choice_and_reason(run: Run) -> None:
    status, printed = run(*CODER, "--accelerator", "MI300X", "--slo", "ttft=2s,tpot=50ms")
    assert status == 0
    for text in ("TP8+EP8", "TP4xDP2+EP8", "DP8+EP8", "262,144", "3,798,560", "SLO"):
        assert text in printed
    assert "Choice: TP8+EP8, one engine on 8 of 8 x MI300X" in printed
    assert "refused by memory: TP1" in printed
    assert "Memory is computed, speed is predicted; nothing here was measured" in printed
    assert "Prefill and decode run on the same engines" in printed


def test_skewed_routing_is_printed_and_makes_a_step_faster(run: Run) -> None:
    found = {}
    for routing in ("uniform", "skewed"):
        options = (*CODER, "--accelerator", "H200", "--layout", "TP8+EP8", "--routing", routing)
        _, printed = run(*options)
        assert f"512 tokens, {routing} routing. " in printed.splitlines()[0]
        assert ("Skewed routing is that of one" in printed) == (routing == "skewed")
        found[routing] = json.loads(run(*options, "--output", "json")[1])
        assert found[routing]["routing"] == routing
    slow, fast = (
        found[name]["candidates"][0]["predicted"]["tpot_s"] for name in ("uniform", "skewed")
    )
    assert fast[0] < slow[0]
    assert fast[1] < slow[1]


def test_no_table_cell_is_truncated(run: Run) -> None:
    _, printed = run(*CODER, "--accelerator", "MI300X")
    assert "…" not in printed
    assert "blocks" in printed


def test_explain_draws_the_memory_of_one_gpu(run: Run) -> None:
    status, printed = run(*CODER, "--accelerator", "H200", "--explain", "TP8+EP8")
    assert status == 0
    assert re.search(r"█{24}▓{28}▒░·{6}", printed)
    for line in ("weights +56.2 GiB +40%", "KV cache +65.6 GiB +47% +2,218,592 tokens"):
        assert re.search(line, printed)


def test_explain_exits_with_1_for_a_layout_that_does_not_fit(run: Run) -> None:
    status, printed = run(*CODER, "--accelerator", "H100", "--explain", "DP8+EP8")
    assert status == 1
    assert "memory: weights need 67.5 GiB" in printed


def test_a_bar_uses_all_its_cells() -> None:
    names = list(table.SHADES)
    for sizes in [(1, 1, 1, 1, 1), (100, 0, 1, 1, 7), (5, 90, 0, 0, 5)]:
        assert len(table.bar(dict(zip(names, sizes, strict=True)))) == table.BAR_CELLS


def test_output_is_written_to_standard_output_or_to_a_file(run: Run, tmp_path: Path) -> None:
    machines = ("--accelerator", "H200")
    _, printed = run(*CODER, *machines, "--output", "fleet.yaml")
    assert yaml.safe_load(printed)["models"][0]["accelerator"] == "H200"
    file = tmp_path / "values.yaml"
    _, message = run(*CODER, *machines, "--output", "values.yaml", str(file))
    assert yaml.safe_load(file.read_text())["fleet"] == yaml.safe_load(printed)
    assert message.startswith(f"{file}: TP8+EP8, ")


def test_json_output_can_be_parsed(run: Run) -> None:
    _, printed = run(*CODER, "--accelerator", "B200", "--goal", "cost", "--output", "json")
    assert json.loads(printed)["goal"] == "cost"


def test_a_cluster_of_two_kinds_gets_a_plan_for_each(run: Run) -> None:
    _, printed = run(*CODER, "--from-cluster", ray=[H100, H100, MI300X])
    assert "FP8 on 2 x 8 x H100" in printed
    assert "FP8 on 8 x MI300X" in printed
    _, one = run(*CODER, "--from-cluster", "--accelerator", "MI300X", ray=[H100, MI300X])
    assert "H100" not in one


def test_machines_without_a_layout_do_not_hide_the_others(
    run: Run,
) -> None:
    small = H100 | {"Resources": {"GPU": 1.0, "accelerator_type:H100": 1.0}}
    status, printed = run(*CODER, "--from-cluster", ray=[small, MI300X])
    assert (status, "Choice: TP8+EP8" in printed) == (0, True)
    with pytest.raises(NoLayoutFits):
        run(*CODER, "--address", "10.0.0.1:6379", ray=[small])


def test_kubernetes_nodes_are_read_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def nodes(context: str | None = None) -> list[dict[str, Any]]:
        asked.append(context)
        labels = {"amd.com/gpu.product-name": "AMD_Instinct_MI355X_OAM"}
        ready = [{"type": "Ready", "status": "True"}]
        status = {"allocatable": {"amd.com/gpu": "8"}, "conditions": ready}
        return [{"metadata": {"name": "n", "labels": labels}, "spec": {}, "status": status}]

    monkeypatch.setattr(plan, "kubernetes_nodes", nodes)
    _, printed = run(*CODER, "--from-cluster", "--kube")
    run(*CODER, "--kube", "prod")
    assert "8 x MI355X" in printed
    assert asked == [None, "prod"]


def test_vllm_args_print_the_environment_to_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "arguments"
    parser = argparse.ArgumentParser()
    plan_options.add(parser.add_subparsers())
    options = (*CODER, "--accelerator", "MI300X", "--output", "vllm-args", str(file))
    plan.run(parser.parse_args(["plan", *options]), lambda address: [])
    assert "environment: VLLM_ROCM_USE_AITER=1" in capsys.readouterr().err
    assert "AITER" not in file.read_text()


def test_a_model_directory_can_be_planned(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    _, printed = run("--model", str(tmp_path), "--accelerator", "H100", "--gpus-per-node", "1")
    assert "TP1" in printed


H200 = ("--accelerator", "H200")
ONE_H100 = ("--accelerator", "H100", "--gpus-per-node", "1")
BAD = [
    ((*CODER, "--accelerator", "H300"), "unknown accelerator 'H300'. Did you mean H200"),
    (("--model", "qwen3-code-480", *H200), "Did you mean Qwen/Qwen3-Coder-480B"),
    (CODER, "no machines are given. Set --accelerator, or --from-cluster"),
    ((*CODER, *H200, "--nodes", "0"), "--nodes is 0"),
    ((*CODER, *H200, "--gpus-per-node", "-8"), "--gpus-per-node is -8"),
    ((*CODER, *H200, "--context", "1000000"), "262,144 or less, or add --long-context yarn, "),
    ((*CODER, *H200, "--context", "-1"), "--context is -1"),
    ((*CODER, *H200, "--concurrency", "0"), "--concurrency is 0"),
    ((*CODER, *H200, "--output-tokens", "0"), "--output-tokens is 0"),
    ((*CODER, *H200, "--slo", "fast"), "'fast' is not part of an SLO"),
    ((*CODER, *H200, "--layout", "8"), "'8' is not a layout"),
    ((*CODER, *H200, "--layout", "TP0"), "'TP0' is not a layout: Input should be greater"),
    ((*CODER, *H200, "--layout", "TP8@3"), "nodes 3 cannot share 8 GPUs"),
    ((*CODER, *H200, "--layout", "TP8+EP2"), "vLLM uses TP x DP = 8"),
    ((*CODER, *H200, "--explain", "TPx"), "'TPx' is not a layout"),
    ((*CODER, *H200, "--output", "toml"), "Formats are fleet.yaml"),
    ((*CODER, *H200, "--output", "json", "a", "b"), "--output takes FORMAT [FILE], not 'json a b'"),
    ((*CODER, *H200, "--explain", "TP8@3"), "Choose a number of nodes that divides 8. See qwen"),
    (("--model", "", *H200), "no model is given"),
    (
        (*CODER, *H200, "--explain", "TP8", "--output", "json"),
        "--explain and --output cannot be used",
    ),
    (("--html", "page.html", "--output", "json"), "--html and --output cannot be used together"),
    (("--html", "page.html", "--calibration"), "--calibration and --html cannot be used together"),
    (
        ("--html", "page.html", "--goal", "cost", "--slo", "tpot=50ms"),
        "--html cannot be used with --goal and --slo: the page plans standard servers for "
        "throughput. Remove them, or remove --html.",
    ),
    *(
        (
            ("--html", "page.html", *option),
            f"--html cannot be used with {option[0]}: the page",
        )
        for option in (
            ("--kv-dtype", "fp8"),
            ("--routing", "skewed"),
            ("--layout", "TP8"),
            ("--long-context", "yarn"),
            ("--gpus-per-node", "4"),
            ("--from-cluster",),
            ("--address", "auto"),
            ("--kube",),
        )
    ),
    (("--html", "page.html", "--nodes", "0"), "--nodes is 0"),
    (("--html", "page.html", "--context", "0"), "--context is 0"),
    ((*CODER, "--from-cluster", "--nodes", "2"), "Remove them: both are read from the cluster"),
    (
        (*CODER, "--from-cluster"),
        "no node with known GPUs. Set --accelerator, --nodes and",
    ),
    ((*CODER, *H200, "--prompt-tokens", "300000"), "Raise --context, or lower --prompt-tokens."),
    (
        ("--model", "qwen3-coder-30b", *ONE_H100, "--context", "200000"),
        "a context of 113,696 tokens (--context 113696) in TP1; or --kv-dtype fp8 in TP1; or ",
    ),
]


@pytest.mark.parametrize(("options", "printed"), BAD)
def test_bad_input_is_refused_with_a_problem_and_a_remedy(
    run: Run, options: tuple[str, ...], printed: str
) -> None:
    with pytest.raises(PlanError) as caught:
        run(*options)
    assert printed in str(caught.value)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--layout", "TP8+EP8", "--gpus-per-node", "6"), "nodes"),
        (("--layout", "TP8xDP2+EP16@2"), "nodes"),
        (("--layout", "TP7", "--gpus-per-node", "7"), "heads"),
        (("--gpus-per-node", "1"), "memory"),
        (("--layout", "DP8+EP8", "--context", "262144"), "context"),
    ],
)
def test_impossible_layouts_are_refused_by_a_rule(
    run: Run, options: tuple[str, ...], rule: str
) -> None:
    with pytest.raises(NoLayoutFits) as caught:
        run(*CODER, *H200, *options)
    assert caught.value.rule == rule


def test_a_quantization_that_the_accelerator_lacks_is_refused(run: Run, tmp_path: Path) -> None:
    four_bits = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
    config = CONFIG | {"quantization_config": four_bits}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NoLayoutFits, match=r"matrix units only for bf16, fp8 \(rule quantiz"):
        run("--model", str(tmp_path), "--accelerator", "MI300X")


def test_a_directory_that_contradicts_its_name_is_refused(run: Run, tmp_path: Path) -> None:
    directory = tmp_path / "Qwen3-Coder-480B-A35B-Instruct-FP8"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(FleetError, match="says num_layers 2, but Qwen/"):
        run("--model", str(directory), *H200)


def test_a_cluster_of_two_kinds_needs_a_choice_before_a_file_is_written(run: Run) -> None:
    with pytest.raises(PlanError, match="Choose one with --accelerator"):
        run(*CODER, "--from-cluster", "--output", "fleet.yaml", ray=[H100, MI300X])
