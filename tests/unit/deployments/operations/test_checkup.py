"""Tests the reports of a Ray cluster's nodes, without a cluster."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from ray import cloudpickle

from qwenfleet.cluster.doctor.finding import Subject, note
from qwenfleet.deployments.operations import checkup
from qwenfleet.deployments.operations.checkup import Node

NODE = Node("a1b2c3d4", "host-1")
LATE = note(Subject.CLOCK, "nothing synchronises it", "Run chrony.")
ANSWER: dict[str, Any] = {"findings": [LATE.as_json()], "versions": {"Ray": "2.60.0"}}


def ray_node(identity: str, host: str, *, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": identity, "NodeManagerHostname": host, "Alive": alive}


def test_live_nodes_are_named_by_their_host() -> None:
    nodes = checkup.named([ray_node("1" * 8, "a"), ray_node("2" * 8, "b", alive=False)])
    assert nodes == [Node("11111111", "a")]


def test_nodes_on_one_host_get_distinct_names() -> None:
    nodes = checkup.named([ray_node("1" * 8, "a"), ray_node("2" * 8, "a")])
    assert [node.name for node in nodes] == ["a/111111", "a/222222"]


def test_report_takes_the_offset_of_the_fastest_reading() -> None:
    readings = [(100.0, 109.0, 104.0), (110.0, 112.55, 110.1), (120.0, 125.0, 121.0)]
    report = checkup.report(NODE, ANSWER, readings)
    assert report.findings == (LATE,)
    assert report.versions == {"Ray": "2.60.0"}
    assert report.offset_s == pytest.approx(2.5)
    assert report.round_trip_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    "answer",
    [{}, {"findings": [{"level": "disaster"}], "versions": {}}, {"findings": 7, "versions": {}}],
)
def test_unreadable_answer_is_a_failure(answer: dict[str, Any]) -> None:
    report = checkup.report(NODE, answer, [])
    assert "different version" in report.failure
    assert report.findings == ()


def test_missing_module_of_a_node_is_named() -> None:
    class TaskError(Exception):
        cause = ModuleNotFoundError("No module named 'qwenfleet'", name="qwenfleet")

    assert checkup._failed(NODE, TaskError()).lacks == "qwenfleet"


def test_failure_is_one_line_without_a_stack() -> None:
    report = checkup._failed(NODE, RuntimeError("the worker died\nTraceback …"))
    assert report.failure == "RuntimeError: the worker died"


def test_node_without_qwenfleet_can_run_the_check_and_report_it() -> None:
    code = (
        "import pickle, sys; sys.modules['qwenfleet'] = None\n"
        "from ray import cloudpickle\n"
        "examine = cloudpickle.loads(sys.stdin.buffer.read())\n"
        "try: examine(0)\n"
        "except ImportError as error:\n"
        "    print(pickle.loads(pickle.dumps(error)).name)"
    )
    examine = cloudpickle.dumps(checkup._examination())
    answer = subprocess.run([sys.executable, "-c", code], input=examine, capture_output=True)
    assert answer.stdout.decode().startswith("qwenfleet"), answer.stderr.decode()


def test_clock_is_read_on_the_node() -> None:
    now = cloudpickle.loads(cloudpickle.dumps(checkup._clock()))
    assert now() > 1_700_000_000
