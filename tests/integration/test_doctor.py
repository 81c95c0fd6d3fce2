"""`qwenfleet doctor` beside a running fleet, and on its cluster."""

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


def test_the_fleets_listeners_are_known_as_its_own(fleet):
    (own,) = [
        finding["sentence"]
        for finding in findings(fleet)
        if f"your fleet 'integration' (pid {fleet.process.pid})" in finding["sentence"]
        and finding["subject"] == "listeners"
    ]

    assert "Ray's ports ask for a token (" in own
    assert "gcs_server" in own
    assert "HAProxy's statistics" in own
    assert "let anyone in" not in own
    assert "answers anyone" not in own  # HTTP is on loopback


def test_no_process_of_the_fleet_is_taken_for_a_stranger(fleet):
    strangers = [
        finding["sentence"]
        for finding in findings(fleet)
        if finding["subject"] == "listeners" and "not of a fleet" in finding["sentence"]
    ]

    assert not [text for text in strangers if "haproxy" in text or str(fleet.process.pid) in text]


def test_its_node_is_examined_from_inside(fleet):
    port = fleet.url.rpartition(":")[2]

    found = findings(fleet, "--port", port)

    assert "1 of 1 nodes answered" in [finding["sentence"] for finding in found]
    assert {"python", "vllm", "listeners", "clock"} <= {finding["subject"] for finding in found}
    assert all(finding["nodes"] for finding in found if finding["subject"] != "nodes")
    assert f"pid {fleet.process.pid}" in json.dumps(found)
    assert "qwenfleet.cli" not in json.dumps(found)  # the command itself is no stranger
