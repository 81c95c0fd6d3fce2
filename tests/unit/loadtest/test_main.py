"""Tests `python -m qwenfleet.loadtest`: errors are reported before anything starts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwenfleet.cluster.errors import BenchmarkError
from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.loadtest import __main__ as loadtest
from qwenfleet.loadtest import overhead, peers, scaling, servers
from qwenfleet.loadtest.cases import Case
from qwenfleet.loadtest.overhead import Results
from qwenfleet.loadtest.scaling import Point

VLLM = Case("vllm", True, 1, 1, 20.0, 20.0, 10.0, 10.0, 10.0, 30.0, 0)
FLEET = Case("fleet", True, 1, 1, 15.0, 15.0, None, None, None, 40.0, 3)
CORES = {"gateway": 0.5}


class Benchmarks:
    """overhead.measure and scaling.measure; they remember what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.error: BaseException | None = None

    def overhead(self, starts: Any, **options: Any) -> Results:
        self._ask(starts, options)
        return Results((VLLM, FLEET), {"vllm": 1.0, "fleet": 2.0}, options["runs"])

    def scaling(self, gateways: Any, **options: Any) -> list[Point]:
        self._ask(gateways, options)
        return [Point(count, FLEET, CORES) for count in gateways]

    def _ask(self, subjects: Any, options: dict[str, Any]) -> None:
        options.pop("say")("so far so good")
        self.asked.append((subjects, options))
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Benchmarks:
    benchmarks = Benchmarks()
    monkeypatch.setattr(overhead, "measure", benchmarks.overhead)
    monkeypatch.setattr(scaling, "measure", benchmarks.scaling)
    return benchmarks


def test_overhead_compares_vllm_and_the_fleet(
    benchmarks: Benchmarks, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loadtest.main(["overhead"]) == 0
    options = {"others": [], "runs": 2, "seconds": 5.0, "loads": overhead.LOADS}
    assert benchmarks.asked == [([servers.vllm, servers.fleet], options)]
    out, err = capsys.readouterr()
    assert "| streamed | 1 | 1 | 20.0 | 15.0 | 0.75 |" in out
    assert "Medians of 2 runs" in out
    assert err == "so far so good\n", "figures go to stdout, news to stderr"


def test_overhead_takes_its_options(
    benchmarks: Benchmarks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "installed", lambda say: [say("smg is not installed") or peers._smg])
    file = tmp_path / "cases.json"
    arguments = ["--runs", "3", "--seconds", "0.5", "--json", str(file), "--peers"]
    assert loadtest.main(["overhead", *arguments]) == 0
    starts, options = benchmarks.asked[0]
    assert starts == [servers.vllm, servers.fleet]
    assert options["others"] == [servers.vllm_as_it_comes, peers._smg]
    assert (options["runs"], options["seconds"]) == (3, 0.5)
    assert json.loads(file.read_text()) == [VLLM.as_json(), FLEET.as_json()]


def test_gateways_measures_one_two_and_four(
    benchmarks: Benchmarks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "points.json"
    assert loadtest.main(["gateways", "--json", str(file), "--seconds", "2"]) == 0
    assert benchmarks.asked == [((1, 2, 4), {"seconds": 2.0})]
    points = json.loads(file.read_text())
    assert [point["gateways"] for point in points] == [1, 2, 4]
    assert points[0]["cores"] == CORES
    assert capsys.readouterr().out.startswith("| gateways | tokens/s |")


def test_a_server_that_fails_is_one_sentence(
    benchmarks: Benchmarks, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmarks.error = BenchmarkError("vllm ended with status 3", "See /tmp/vllm.log.")
    assert loadtest.main(["overhead"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "so far so good\nloadtest: vllm ended with status 3. See /tmp/vllm.log.\n"


def test_an_interrupt_is_130(benchmarks: Benchmarks) -> None:
    benchmarks.error = KeyboardInterrupt()
    assert loadtest.main(["gateways"]) == 130


@pytest.mark.parametrize("command", ["overhead", "gateways"])
@pytest.mark.parametrize("file", [".", "none/cases.json", "/proc/cases.json"])
def test_unwritable_file_is_reported_before_anything_starts(
    benchmarks: Benchmarks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    file: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert loadtest.main([command, "--json", file]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"loadtest: {file}: ")
    assert len(err.splitlines()) == 1
    assert benchmarks.asked == []


def test_a_file_of_earlier_figures_is_kept_when_the_benchmark_fails(
    benchmarks: Benchmarks, tmp_path: Path
) -> None:
    file = tmp_path / "cases.json"
    file.write_text("earlier")
    benchmarks.error = BenchmarkError("vllm ended with status 3", "See its log.")
    assert loadtest.main(["overhead", "--json", str(file)]) == 1
    assert file.read_text() == "earlier"


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "COMMAND"),
        (["fly"], "fly"),
        (["overhead", "--runs", "0"], "'0' is not a number of runs"),
        (["overhead", "--runs", "-1"], "'-1' is not a number of runs"),
        (["overhead", "--runs", "1.5"], "'1.5' is not a number of runs"),
        (["overhead", "--seconds", "0"], "'0' is not a number of seconds"),
        (["overhead", "--seconds", "-2"], "'-2' is not a number of seconds"),
        (["overhead", "--seconds", "nan"], "'nan' is not a number of seconds"),
        (["gateways", "--seconds", "inf"], "'inf' is not a number of seconds"),
        (["gateways", "--seconds", "soon"], "'soon' is not a number of seconds"),
        (["gateways", "--runs", "2"], "--runs"),
        (["gateways", "--peers"], "--peers"),
    ],
)
def test_a_wrong_command_line_shows_the_usage(
    benchmarks: Benchmarks, capsys: pytest.CaptureFixture[str], arguments: list[str], printed: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        loadtest.main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert "usage: python -m qwenfleet.loadtest" in err
    assert printed in err
    assert benchmarks.asked == []


PROGRAM = """
import runpy, sys
from contextlib import contextmanager
from qwenfleet.loadtest import servers

program, port, *options = sys.argv[1:]
servers.GRACE_S = 0.2

@contextmanager
def vllm(directory):
    command = [sys.executable, program, port, *options]
    server = servers.Server("vllm", f"http://127.0.0.1:{port}")
    with servers.running(server, command, {}, directory, ready="/health"):
        print(directory, flush=True)
        yield server

servers.vllm = vllm
sys.argv[1:] = ["overhead", "--seconds", "60"]
runpy.run_module("qwenfleet.loadtest", run_name="__main__", alter_sys=True)
"""
"""The real program, but vLLM is a server without a model."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [["--burn"], ["--burn", "--ready-after-s", "60"]])
def test_ctrl_c_and_sigterm_end_the_servers(
    start_python: Any, soon: Any, program: Path, number: signal.Signals, options: list[str]
) -> None:
    (port,) = free_ports(1, "127.0.0.1")
    process = start_python(PROGRAM, program, port, *options)
    parent = psutil.Process(process.pid)
    soon(lambda: len(parent.children(recursive=True)) == 2)
    family = parent.children(recursive=True)
    if options == ["--burn"]:
        assert process.stdout.readline(), "the server is up"
    process.send_signal(number)
    status = process.wait(timeout=20)
    left = [member for member in family if member.is_running()]
    for member in left:
        member.kill()
    assert left == []
    assert status == 130
    assert "Traceback" not in process.stderr.read()


def test_help_runs_as_a_program() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "qwenfleet.loadtest", "--help"],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "overhead" in answer.stdout
    assert "gateways" in answer.stdout
