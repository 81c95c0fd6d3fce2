"""Overhead of qwenfleet over vLLM's own server: the same closed-loop load on both, in turn."""

from __future__ import annotations

import itertools
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwenfleet.cluster.errors import BenchmarkError
from qwenfleet.loadtest import cases, process_tree, servers
from qwenfleet.loadtest.cases import Case
from qwenfleet.loadtest.closed_loop import ClosedLoop
from qwenfleet.loadtest.servers import Server

LOADS: Final = tuple(
    ClosedLoop(is_stream, max_tokens, concurrency)
    for is_stream, max_tokens, concurrency in itertools.product((True, False), (1, 64), (1, 8, 32))
)
IDLE_S: Final = 5.0
SEED: Final = 20_261_122

Start = Callable[[Path], AbstractContextManager[Server]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Results:
    """Medians over all runs of each server."""

    cases: tuple[Case, ...]
    idle_cpu_ms_per_s: dict[str, float]
    """CPU time per second of an idle server."""
    runs: int


def measure(
    starts: Sequence[Start],
    *,
    others: Sequence[Start] = (),
    runs: int,
    seconds: float,
    loads: Sequence[ClosedLoop],
    say: Say,
) -> Results:
    """Run every server `runs` times, in turn, so that drift of the machine affects all alike.

    If one of `others` does not start, it is reported and left out from then on. Raises
    BenchmarkError if one of `starts` does not start.
    """
    process_tree.adopt_orphans()
    cases_of: dict[tuple[str, ClosedLoop], list[Case]] = {}
    idle: dict[str, list[float]] = {}
    left_out: list[Start] = []
    for run, start in itertools.product(range(runs), [*starts, *others]):
        if start in left_out:
            continue
        try:
            name, idle_cpu, measured = _run(start, run, seconds, loads, say)
        except BenchmarkError as error:
            if start in starts:
                raise
            say(f"left out from here on: {error}")
            left_out.append(start)
            continue
        idle.setdefault(name, []).append(idle_cpu)
        for case in measured:
            cases_of.setdefault((name, case.load), []).append(case)
    return Results(
        cases=tuple(cases.median(each) for each in cases_of.values()),
        idle_cpu_ms_per_s={name: statistics.median(values) for name, values in idle.items()},
        runs=runs,
    )


def _run(
    start: Start, run: int, seconds: float, loads: Sequence[ClosedLoop], say: Say
) -> tuple[str, float, list[Case]]:
    """Start one server and run all loads; return its name, its idle CPU time and the cases."""
    with workspace() as directory:
        before_s = time.monotonic()
        with start(directory) as server:
            say(f"run {run + 1}: {server.name} up in {time.monotonic() - before_s:.0f} s")
            idle_cpu = _idle_cpu_ms_per_s()
            measured = []
            for load in loads:
                sample = servers.load(server, load, seconds, random.Random(SEED + run))
                measured.append(cases.measured(server.name, load, sample))
                say(f"  {line(measured[-1])}")
    return server.name, idle_cpu, measured


def line(case: Case) -> str:
    """Format one case as a progress line."""
    ttft = "none" if case.ttft_p50_ms is None else f"{case.ttft_p50_ms:.1f} ms"
    return (
        f"{case.server}: {case.load}: {case.requests_per_s:.1f} requests/s, TTFT p50 {ttft}, "
        f"{case.cpu_ms_per_request:.1f} ms of CPU per request, {case.errors} errors"
    )


@contextmanager
def workspace() -> Iterator[Path]:
    """Make a folder for a server's files. It is kept if the server fails, for its log."""
    directory = Path(tempfile.mkdtemp(prefix="qwenfleet-loadtest-"))
    yield directory
    shutil.rmtree(directory)


def _idle_cpu_ms_per_s() -> float:
    before_s = process_tree.cpu_s()
    time.sleep(IDLE_S)
    return 1000 * (process_tree.cpu_s() - before_s) / IDLE_S
