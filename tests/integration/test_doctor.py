"""Tests `qwenfleet doctor` next to a running fleet, and on its cluster."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.integration


def findings(fleet, *arguments):
    answer = fleet.cli("doctor", "--json", *arguments)
    assert "Traceback" not in answer.stdout + answer.stderr
    report = json.loads(answer.stdout)
    assert answer.returncode == (1 if report["problems"] else 0)
    return report["findings"]


def test_a_fleet_on_loopback_with_a_token_is_open_to_nobody(fleet):
    found = findings(fleet)

    assert [f["level"] for f in found if f["subject"] == "listeners"] == ["ok"]
    assert not [f for f in found if "'integration'" in f["sentence"] and "without" in f["sentence"]]


def test_its_node_is_examined_from_inside(fleet):
    port = fleet.url.rpartition(":")[2]

    found = findings(fleet, "--port", port)

    assert "1 of 1 nodes answered" in [finding["sentence"] for finding in found]
    assert {"python", "vllm", "listeners", "clock"} <= {finding["subject"] for finding in found}
    assert all(finding["nodes"] for finding in found if finding["subject"] != "nodes")
