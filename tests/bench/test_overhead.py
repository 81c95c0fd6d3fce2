"""The overhead benchmark as its users run it: vLLM's own server, then a fleet, both for real."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

RUN_S = 800
"""Two starts of vLLM, and of Ray, on two cores that may be busy; it took 2 minutes on idle ones."""
pytestmark = [pytest.mark.integration, pytest.mark.timeout(RUN_S + 180)]

KEEPER = """
import json, subprocess, sys
from pathlib import Path
import psutil
from qwenfleet.loadtest import process_tree

process_tree.adopt_orphans()
directory = Path(sys.argv[1])
with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
    command = [sys.executable, "-m", "qwenfleet.loadtest", *sys.argv[2:]]
    status = subprocess.run(command, stdout=out, stderr=err).returncode
process_tree.reap(psutil.Process().children())
left = psutil.Process().children(recursive=True)
names = [process.name() for process in left]
for process in left:
    process.kill()
(directory / "end.json").write_text(json.dumps({"status": status, "left": names}))
"""
"""Runs the program and adopts its leftover processes."""


def test_both_servers_are_measured_without_an_error_and_leave_nothing(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    options = ["overhead", "--runs", "1", "--seconds", "0.3", "--json", str(file)]
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, str(tmp_path), *options])
    try:
        keeper.wait(RUN_S)
    finally:
        for program in psutil.Process(keeper.pid).children() if keeper.poll() is None else []:
            program.terminate()
        keeper.wait(120)
    printed = (tmp_path / "err").read_text()
    assert json.loads((tmp_path / "end.json").read_text()) == {"status": 0, "left": []}, printed

    cases = json.loads(file.read_text())
    assert [
        (case["server"], case["stream"], case["max_tokens"], case["concurrency"]) for case in cases
    ] == list(itertools.product(("vllm", "fleet"), (True, False), (1, 64), (1, 8, 32)))
    for case in cases:
        assert case["errors"] == 0, case
        assert case["requests_per_s"] > 0, case
        assert case["tokens_per_s"] == pytest.approx(case["max_tokens"] * case["requests_per_s"])
        assert case["cpu_ms_per_request"] > 0, case
        assert 0 < case["ttft_p50_ms"] <= case["latency_p50_ms"] <= case["latency_p99_ms"], case
        if not case["stream"]:
            assert case["ttft_p50_ms"] == case["latency_p50_ms"], case
    table = (tmp_path / "out").read_text()
    assert table.count("| streamed |") == table.count("| whole |") == 6
    assert "Medians of 1 runs." in table
    assert "run 1: vllm up" in printed
    assert "run 1: fleet up" in printed
