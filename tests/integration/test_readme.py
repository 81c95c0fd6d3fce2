"""The requests and programs of README and docs, run as printed against a live fleet, but for the
address and the model's name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.pages import blocks

pytestmark = pytest.mark.integration

REQUESTS = [block for block in blocks("sh") if block.text.startswith("curl ")]
PROGRAMS = blocks("python")
MODELS = ("smollm2-135m-instruct", "Qwen3-Coder-480B-A35B-Instruct-FP8")


def adapted(fleet, text):
    """A block for this fleet, whose port is a free one and whose model is called smollm2."""
    assert "http://127.0.0.1:8000" in text
    assert any(model in text for model in MODELS)
    text = text.replace("http://127.0.0.1:8000", fleet.url)
    for model in MODELS:
        text = text.replace(model, "smollm2")
    return text


def test_the_pages_show_requests_and_programs():
    assert {block.page.name for block in REQUESTS} == {"README.md", "serve-480b.md"}
    assert len(PROGRAMS) >= 2


@pytest.mark.parametrize("block", REQUESTS, ids=lambda block: block.name)
def test_a_request_is_answered(fleet, block):
    run = subprocess.run(
        adapted(fleet, block.text), shell=True, capture_output=True, timeout=300, check=True
    )

    (choice,) = json.loads(run.stdout)["choices"]
    message = choice["message"]
    if block.page.name == "README.md":
        assert "def reverse" in message["content"]
    else:  # this model was never taught to call tools
        assert message["content"] or message["tool_calls"]


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.name)
def test_a_program_prints_text(fleet, block):
    run = subprocess.run(
        [sys.executable, "-c", adapted(fleet, block.text)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )

    assert len(run.stdout) > 20


def test_status_shows_the_fleet_as_a_table(fleet):
    table = fleet.cli("status").stdout

    assert fleet.url in table
    assert "GATEWAY" in table
    assert table.count("ready") >= 4
