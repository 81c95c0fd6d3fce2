"""What the pages of docs say is complete: names, commands, options, routes, decisions."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace

import pytest

from qwenfleet.cli.__main__ import _parser
from qwenfleet.cluster.config.load import load
from qwenfleet.cluster.doctor import gpu_fit
from qwenfleet.cluster.doctor.gpus import Gpu, Gpus
from qwenfleet.cluster.doctor.packages import Package
from qwenfleet.cluster.labels import Outcome
from qwenfleet.cluster.metrics import METRICS
from qwenfleet.cluster.models.catalog import find_model
from qwenfleet.deployments.ingress.http_app import MODEL_ROUTES, OWN_ROUTES, TIMEOUT_HEADER
from qwenfleet.deployments.ingress.keys import OPEN_ROUTES
from tests.pages import PAGES, ROOT, blocks, read

CONFIGURATION = read("docs/configuration.md")
OPERATIONS = read("docs/operations.md")
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
ALONE = {"--json", "--verbose", "--timings", "--once", "--kube", "--watch", "--force"}


def test_the_example_fleets_are_what_their_page_says(tmp_path):
    fleets = {}
    for block in blocks("yaml"):
        if block.page.name == "configuration.md":
            (tmp_path / block.file_name).write_text(block.text, encoding="utf-8")
            fleets[block.file_name] = load(tmp_path / block.file_name)

    assert fleets.keys() == {
        "arguments.yaml",
        "fleet.yaml",
        "guarded.yaml",
        "mixed.yaml",
        "slo.yaml",
    }
    assert [model.id for model in fleets["fleet.yaml"].models] == ["coder", "small"]
    assert fleets["fleet.yaml"].models[0].num_gpus == 2
    assert fleets["guarded.yaml"].has_keys
    assert fleets["slo.yaml"].objectives["smollm2-135m-instruct"].ttft_s == 2
    assert [pool.num_gpus for pool in fleets["mixed.yaml"].engine_pools] == [8, 8]


def test_every_metric_is_explained_and_none_is_invented():
    assert set(re.findall(r"\bqwenfleet_[a-z_]+", read("docs/metrics.md"))) == set(METRICS)
    for page in PAGES:
        named = re.findall(r"`(?:ray_)?(qwenfleet_[a-z_]+)`", page.read_text(encoding="utf-8"))
        assert set(METRICS).issuperset(set(named) - {"qwenfleet_resume"}), page


def test_every_outcome_is_named():
    (passage,) = re.findall(r"A request ends as one of: (.*?)\(label", OPERATIONS, re.DOTALL)

    assert set(re.findall(r"`(\w+)`", passage)) == {outcome.value for outcome in Outcome}


def test_the_routes_are_those_that_are_reachable():
    (passage,) = re.findall(r"^Routes: (.*?)Nothing else", CONFIGURATION, re.DOTALL | re.MULTILINE)

    assert set(re.findall(r"`(/[a-z0-9_/]+)`", passage)) == MODEL_ROUTES | OWN_ROUTES
    assert TIMEOUT_HEADER.decode() in CONFIGURATION


def test_the_routes_that_need_no_key_are_those_there_are():
    (passage,) = re.findall(
        r"Without a key nothing answers except (.*?):", CONFIGURATION, re.DOTALL
    )

    assert set(re.findall(r"`(/[a-z0-9_/]+)`", passage)) == OPEN_ROUTES


def test_every_command_has_its_row():
    (commands,) = (
        action.choices
        for action in _parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    assert commands is not None
    for command in commands:
        assert f"| `qwenfleet {command} " in OPERATIONS


def test_the_commands_take_the_options_shown():
    rows = re.findall(r"\| `qwenfleet (\w+)((?: --?\w+| [A-Z]+)*) \[(.*?)`", OPERATIONS)
    assert len(rows) >= 8
    for command, fixed, options in rows:
        for option in re.findall(r"--[a-z]+", options):
            value = [] if option in ALONE else ["1"]
            _parser().parse_args([command, *fixed.split(), option, *value])


def test_the_options_of_plan_are_all_explained():
    (commands,) = (
        action.choices
        for action in _parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    assert commands is not None
    known = {option for action in commands["plan"]._actions for option in action.option_strings}
    (table,) = re.findall(r"^\| option \|.*?\n\n", read("docs/planner.md"), re.DOTALL | re.M)

    assert set(re.findall(r"--[a-z-]+", table)) >= known - {"--help", "-h"}
    assert set(re.findall(r"`(--[a-z-]+)", table)) <= known


def test_the_480b_page_has_the_planner_s_sizes():
    page = read("docs/serve-480b.md")
    size = find_model("qwen3-coder-480b-fp8").geometry.weight_bytes

    assert f"{size / 1e9:.1f} GB ({size / 2**30:.1f} GiB)" in page
    assert f"{size / 0.125e9 / 60:.0f} min at 1 Gbit/s, {size / 1.25e9 / 60:.1f} min at 10" in page
    assert f"{size / 2e9 / 60:.1f} min at 2 GB/s, {size / 7e9:.0f} s at 7 GB/s" in page


def test_the_480b_page_shows_what_doctor_says_of_gpus():
    """Cases: a good node, an old driver, a torch for CPUs, and a user without rights."""
    good = Gpus(
        nvidia=(Gpu("NVIDIA H100 80GB HBM3", 81559),) * 8,
        nvidia_driver="580.95.05",
        on_bus=(8, 0),
        seen_by_torch=8,
    )
    amd = Gpus(amd=(Gpu("gfx942"),) * 8, amd_driver="6.12.12", on_bus=(0, 8), can_open_kfd=False)
    cuda = Package("torch", "2.13.0", build="cuda", device_version="13.0")
    cases = (
        (good, cuda),
        (replace(good, nvidia_driver="570.133.20"), cuda),
        (replace(good, seen_by_torch=None), Package("torch", "2.13.0+cpu", build="cpu")),
        (amd, replace(cuda, build="rocm", device_version="7.0.2")),
    )
    for gpus, torch in cases:
        (finding,) = gpu_fit.judge(gpus, torch, is_node=False)
        row = f"| `[{finding.level}]` {finding.sentence} |"
        assert row in read("docs/serve-480b.md")


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_has_four_parts(page):
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)

    assert headings == ["Context", "Decision", "Alternatives", "Consequences"]
    assert all(part.strip() for part in re.split(r"^##? .*$", text, flags=re.MULTILINE)[2:])


def test_the_index_of_decisions_has_them_all_in_order():
    titles = [page.read_text(encoding="utf-8").splitlines()[0] for page in DECISIONS]
    index = read("docs/decisions/README.md")

    for number, (page, title) in enumerate(zip(DECISIONS, titles, strict=True), start=1):
        assert page.name.startswith(f"{number:04d}-")
        assert title.startswith(f"# {number}. ")
        assert f"| {number} | [{title.partition('. ')[2]}]({page.name}) |" in index
