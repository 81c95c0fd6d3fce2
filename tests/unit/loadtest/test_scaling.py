"""How far gateways carry: cores by kind of process, and the table of them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from qwenfleet.loadtest import overhead, process_tree, scaling, servers
from qwenfleet.loadtest.cases import Case
from qwenfleet.loadtest.closed_loop import ClosedLoop
from qwenfleet.loadtest.scaling import Point
from qwenfleet.loadtest.servers import Server

CORES = {"gateway": 0.5, "engine": 0.25, "haproxy": 0.04, "other": 0.0, "client": 0.8}


def point(gateways: int, tokens_per_s: float, **cores: float) -> Point:
    case = Case("fleet", True, 256, 64, 9.0, tokens_per_s, 123.4, 900.0, 1500.6, 40.0, 2)
    return Point(gateways, case, CORES | cores)


def test_the_table_has_a_row_for_each_number_of_gateways() -> None:
    heading, rule, *rows = scaling.render([point(1, 2000.4), point(2, 3000, gateway=1)]).split("\n")
    assert heading == (
        "| gateways | tokens/s | TTFT p50, ms | latency p99, ms | errors | cores: gateway "
        "| cores: engine | cores: haproxy | cores: other | cores: client "
        "| tokens/s per gateway core |"
    )
    assert rows == [
        "| 1 | 2000 | 123 | 1501 | 2 | 0.50 | 0.25 | 0.04 | 0.00 | 0.80 | 4001 |",
        "| 2 | 3000 | 123 | 1501 | 2 | 1.00 | 0.25 | 0.04 | 0.00 | 0.80 | 3000 |",
    ]
    assert rule.count("|") == heading.count("|")


def test_the_json_of_a_point_is_its_case_with_gateways_and_cores() -> None:
    point_ = point(4, 1000.0)
    assert point_.as_json() == {"gateways": 4, "cores": CORES, **point_.case.as_json()}


def test_no_point_is_a_heading() -> None:
    assert scaling.render([]).count("\n") == 1


COMMANDS = {
    "ray::ServeReplica:qwenfleet:gateway": "gateway",
    "ray::ServeReplica:qwenfleet:engine-0": "engine",
    "/usr/bin/haproxy -W -db -dS -f haproxy.cfg": "haproxy",
    "raylet --raylet_socket_name=x": "other",
}


def test_processes_are_kinds_by_their_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def cpu_s_by(kind_of: Any) -> dict[str, float]:
        return {kind_of(command): 1.0 for command in COMMANDS}

    monkeypatch.setattr(process_tree, "cpu_s_by", cpu_s_by)
    assert scaling._cpu_s_by_kind() == dict.fromkeys(COMMANDS.values(), 1.0)
    monkeypatch.setattr(process_tree, "cpu_s_by", lambda kind_of: {})
    assert scaling._cpu_s_by_kind() == dict.fromkeys(COMMANDS.values(), 0.0)


def test_a_point_is_measured_with_the_cores_of_each_kind(
    slow_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "LOAD", ClosedLoop(is_stream=True, max_tokens=4, concurrency=2))
    monkeypatch.setattr(servers, "MODEL", "m")
    monkeypatch.setattr(scaling, "KINDS", {"gateway": "completions_server.py", "engine": "nobody"})
    measured = scaling._measure_one(Server("fleet", slow_server.url), 3, 0.6)
    assert measured.gateways == 3
    assert measured.case.errors == 0
    assert measured.case.tokens_per_s > 0
    assert set(measured.cores) == {"gateway", "engine", "other", "client"}
    assert measured.cores["engine"] == 0
    assert 0 < measured.cores["gateway"] < 1.2
    assert 0 < measured.cores["client"] < 1.2
    prompts = slow_server.seen()["prompts"]
    rng = random.Random(overhead.SEED)
    assert len(set(prompts)) == len(prompts)
    assert "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=64)) in prompts
