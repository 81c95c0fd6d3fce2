"""The overhead benchmark on servers without a model: every server in turn, medians over runs."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cluster.errors import BenchmarkError
from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.loadtest import overhead, process_tree
from qwenfleet.loadtest.cases import Case
from qwenfleet.loadtest.closed_loop import ClosedLoop

MEASURE = """
import json, os, sys
from contextlib import contextmanager
import psutil
from qwenfleet.loadtest import overhead, servers
from qwenfleet.loadtest.closed_loop import ClosedLoop

overhead.IDLE_S = 0.5
servers.GRACE_S = 0.2
program, spec = sys.argv[1], json.loads(sys.argv[2])

def start_of(name):
    @contextmanager
    def start(directory):
        port, *options = spec[name]
        command = [sys.executable, program, str(port), *options]
        server = servers.Server(name, f"http://127.0.0.1:{port}")
        with servers.running(server, command, {}, directory, ready="/health"):
            yield server
    return start

reported = []
loads = [ClosedLoop(True, 4, 2), ClosedLoop(False, 2, 1)]
results = overhead.measure(
    [start_of(name) for name in spec], runs=2, seconds=0.15, loads=loads, say=reported.append
)
print(json.dumps({
    "cases": [case.as_json() for case in results.cases],
    "idle": results.idle_cpu_ms_per_s,
    "runs": results.runs,
    "reported": reported,
    "processes": len(psutil.Process().children()),
    "files": os.listdir("."),
}))
"""
QUICK = ["--step-ms", "1"]
BUSY = ["--step-ms", "10", "--burn"]


@pytest.fixture(scope="module")
def measured(python_says: Any, program: Path) -> Any:
    """Two runs of a quick server, a, and of a slow one whose child is never idle, b."""
    ports = free_ports(2, "127.0.0.1")
    spec = {"a": [str(ports[0]), *QUICK], "b": [str(ports[1]), *BUSY]}
    return python_says(MEASURE, program, json.dumps(spec))


def figures_of(reported: list[str], server: str, load: ClosedLoop) -> list[float]:
    """Return the requests per second of each run, as printed during the runs."""
    pattern = re.compile(rf"  {server}: {re.escape(str(load))}: (\d+\.\d) requests/s")
    return [float(match[1]) for text in reported if (match := pattern.match(text))]


def test_servers_run_in_turn_and_each_load_is_printed(measured: Any) -> None:
    tail = r" in \d+ s$|: [\d.]+ requests/s.*"
    reported = [re.sub(tail, "", text) for text in measured["reported"]]
    run = {
        name: [f"  {name}: stream, 4 tokens, c=2", f"  {name}: whole, 2 tokens, c=1"]
        for name in "ab"
    }
    assert reported == [
        *("run 1: a up", *run["a"], "run 1: b up", *run["b"]),
        *("run 2: a up", *run["a"], "run 2: b up", *run["b"]),
    ]


def test_a_case_is_the_median_of_its_runs(measured: Any) -> None:
    cases = [Case(**case) for case in measured["cases"]]
    assert [(case.server, str(case.load)) for case in cases] == [
        ("a", "stream, 4 tokens, c=2"),
        ("a", "whole, 2 tokens, c=1"),
        ("b", "stream, 4 tokens, c=2"),
        ("b", "whole, 2 tokens, c=1"),
    ]
    for case in cases:
        runs = figures_of(measured["reported"], case.server, case.load)
        assert len(runs) == 2
        assert case.requests_per_s == pytest.approx(sum(runs) / 2, abs=0.11)
        assert case.tokens_per_s == pytest.approx(case.max_tokens * case.requests_per_s)
        assert case.errors == 0
    assert measured["runs"] == 2


def test_times_are_those_of_the_server(measured: Any) -> None:
    cases = {(case["server"], case["stream"]): Case(**case) for case in measured["cases"]}
    for server, step_ms in (("a", 1), ("b", 10)):
        stream, whole = cases[server, True], cases[server, False]
        assert step_ms <= (stream.ttft_p50_ms or 0) < (stream.latency_p50_ms or 0)
        assert 4 * step_ms <= (stream.latency_p50_ms or 0) <= (stream.latency_p99_ms or 0)
        assert 2 * step_ms <= (whole.ttft_p50_ms or 0)
        assert whole.ttft_p50_ms == whole.latency_p50_ms
        assert stream.requests_per_s <= 2 * 1000 / (4 * step_ms)


def test_a_busy_child_shows_as_cpu_of_its_server(measured: Any) -> None:
    assert set(measured["idle"]) == {"a", "b"}
    assert 0 <= measured["idle"]["a"] < 60 < measured["idle"]["b"] < 1000


def test_nothing_stays_when_all_went_well(measured: Any) -> None:
    assert measured["processes"] == 0
    assert measured["files"] == []


def test_a_workspace_stays_for_its_log_when_the_server_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with overhead.workspace() as removed:
        (removed / "log").touch()
    assert not removed.exists()
    with contextlib.suppress(BenchmarkError), overhead.workspace() as kept:
        (kept / "log").touch()
        raise BenchmarkError("vllm ended with status 3", "See the log.")
    assert list(tmp_path.iterdir()) == [kept]
    assert list(kept.iterdir()) == [kept / "log"]


def test_the_line_of_a_case_without_a_good_answer_says_so() -> None:
    case = Case("fleet", True, 64, 8, 0.0, 0.0, None, None, None, 12.34, 7)
    assert overhead.line(case) == (
        "fleet: stream, 64 tokens, c=8: 0.0 requests/s, TTFT p50 none, "
        "12.3 ms of CPU per request, 7 errors"
    )


def test_the_loads_are_twelve_and_differ() -> None:
    assert len(set(overhead.LOADS)) == len(overhead.LOADS) == 12


def test_a_peer_that_does_not_start_costs_none_of_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def run(start: Any, *_: Any) -> tuple[str, float, list[Case]]:
        asked.append(start)
        if start == "broken":
            raise BenchmarkError("broken ended with status 1", "See its log.")
        return start, 1.0, []

    monkeypatch.setattr(overhead, "_run", run)
    monkeypatch.setattr(process_tree, "adopt_orphans", lambda: None)
    reported: list[str] = []
    options: Any = {"runs": 2, "seconds": 1.0, "loads": (), "say": reported.append}
    starts: Any = ["vllm"]
    results = overhead.measure(starts, others=["broken", "peer"], **options)  # type: ignore[list-item]
    assert asked == ["vllm", "broken", "peer", "vllm", "peer"]
    assert results.idle_cpu_ms_per_s == {"vllm": 1.0, "peer": 1.0}
    assert reported == ["left out from here on: broken ended with status 1. See its log."]
    with pytest.raises(BenchmarkError, match="broken ended"):
        overhead.measure(["broken"], **options)  # type: ignore[list-item]
