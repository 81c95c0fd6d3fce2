"""README's commands, run as printed but for the address and the model's name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def block(fleet, language, holding):
    """The one code block of this language that holds this text."""
    (text,) = [
        b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if holding in b
    ]
    return text.replace("http://127.0.0.1:8000", fleet.url).replace(
        "smollm2-135m-instruct", "smollm2"
    )


def test_the_curl_line_answers_with_python(fleet):
    run = subprocess.run(
        block(fleet, "sh", "curl"), shell=True, capture_output=True, timeout=300, check=True
    )

    assert "def reverse" in json.loads(run.stdout)["choices"][0]["message"]["content"]


def test_the_sdk_example_streams_text(fleet):
    run = subprocess.run(
        [sys.executable, "-c", block(fleet, "python", "openai")],
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
