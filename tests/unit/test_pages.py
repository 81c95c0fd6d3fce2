"""Every code block of the pages is of a kind that is run, rendered or parsed; links, paths and
modules that pages name are there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import ClickException

from qwenfleet.cli import __main__ as cli
from qwenfleet.cluster.chart.values import ChartValues
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.load import load
from tests.pages import PAGES, ROOT, Block, blocks, commands
from tests.shell_commands import check

FLEET_FIELDS = FleetConfig.model_fields.keys()
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
TREE = re.compile(
    r"`((?:cluster|deployments|loadtest|kernels|qwenfleet|helm|tests|docs)/[\w./-]*)`"
)
TEST_FILE = re.compile(r"`(test_\w+\.py)`")
MODULE = re.compile(r"python -m (qwenfleet[\w.]*)")


def of_kind(*kinds: str) -> Any:
    found = blocks(*kinds)
    assert found
    return pytest.mark.parametrize("block", found, ids=lambda block: block.name)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_fleet(block: Block) -> bool:
    return set(FLEET_FIELDS).issuperset(yaml.safe_load(block.text)) and (
        not block.file_name.endswith("-values.yaml")
    )


def test_every_block_is_of_a_known_kind():
    unknown = [
        b.name for b in blocks() if b.kind not in {"sh", "python", "yaml", "console", "text"}
    ]

    assert unknown == []


def test_every_fence_is_closed():
    for page in PAGES:
        fences = re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) % 2 == 0, page


@of_kind("sh")
def test_each_command_is_one_that_its_program_takes(block):
    for words in commands(block.text):
        check(words)


@pytest.mark.parametrize(
    "command",
    [
        "qwenfleet serve --modell x",
        "qwenfleet fly",
        "make fly",
        "python -m qwenfleet.deployments",
        "python -c 'from qwenfleet.deployments.haproxy import nothing'",
        "pip install '.[rocm]'",
        "pip install dist/qwenfleet-0.0.9-py3-none-any.whl",
        "hf download Qwen/Qwen3-Coder-481B",
        "docker build -f helm/image/Dockerfile --build-arg FLAVOR=cpu -t x .",
        "docker run vllm/vllm-openai-rocm:v0.31.0",
        "helm install coder helm/fleet",
        "helm install coder helm/qwenfleet -f no-values.yaml",
        "export RAY_SERVE_ENABLE_HA_PROXY=0",
        "export RAY_SERVE_HAPROXY=1",
        "ray job submit --working-dir . -- python -m qwenfleet.deployments --halt",
        "ray start --heads",
        "curl -s http://127.0.0.1:8000/v1/chats",
        """curl -s http://127.0.0.1:8000/v1/completions -d '{"model": "nobody"}'""",
        ".ci/fly",
        "wget x",
    ],
)
def test_invalid_command_is_detected(command):
    (words,) = commands(command)
    with pytest.raises((AssertionError, ImportError, KeyError, ClickException)):
        check(words)


@of_kind("python")
def test_each_program_compiles(block):
    """tests/integration/test_readme.py runs them."""
    compile(block.text, block.name, "exec")


@of_kind("yaml")
def test_each_yaml_block_is_a_fleet_or_values_of_the_chart(block, tmp_path):
    if is_fleet(block):
        path = tmp_path / "fleet.yaml"
        path.write_text(block.text, encoding="utf-8")
        load(path)
    else:
        values = yaml.safe_load((ROOT / "helm/qwenfleet/values.yaml").read_text(encoding="utf-8"))
        values = over(values, yaml.safe_load(block.text))
        values["fleet"]["auth"] = "none"  # which the chart adds, from its own `auth`
        ChartValues.model_validate(values)


def over(below: Any, above: Any) -> Any:
    """Two trees of values as helm puts one over the other."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: over(below.get(key), value) for key, value in above.items()}}


@of_kind("console")
def test_console_block_matches_the_commands_output(block, capsys):
    """But for where lines are cut, which `…` marks, and folded."""
    passages = block.text.split("$ qwenfleet plan ")
    assert not passages[0]
    for passage in passages[1:]:
        command, _, printed = passage.partition("\n")
        cli.main(["plan", *command.split()])
        answer = capsys.readouterr()
        shown = " ".join((answer.out + answer.err).split())
        for piece in printed.split("…"):
            assert " ".join(piece.split()) in shown


def test_the_fleet_of_the_480b_page_is_the_one_that_its_command_writes(tmp_path):
    page = ROOT / "docs" / "serve-480b.md"
    (shown,) = (b for b in blocks("yaml") if b.page == page and not b.file_name)
    text = page.read_text(encoding="utf-8")
    (command,) = re.findall(r"^qwenfleet (plan .*H100 --output fleet.yaml) fleet.yaml$", text, re.M)
    written = tmp_path / "fleet.yaml"

    assert cli.main([*command.split(), str(written)]) == 0
    assert written.read_text(encoding="utf-8").partition("\n")[2] == shown.text


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_each_link_leads_somewhere(page):
    for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_each_path_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    missing = [path for path in TREE.findall(text) if not (ROOT / path).exists()]
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}

    assert missing == []
    assert tests.issuperset(TEST_FILE.findall(text))
    assert [name for name in MODULE.findall(text) if not is_module(name)] == []


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
