"""Real processes, titled like vLLM's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from qwenfleet.deployments.vllm_adapter import processes

SLEEP = "import sys, time; sys.stdout.write('up'); sys.stdout.flush(); time.sleep(600)"


def start(title: str) -> subprocess.Popen[bytes]:
    """A process whose command line begins with a title, as setproctitle makes it."""
    process = subprocess.Popen(
        [f"VLLM::{title}", "-c", SLEEP], executable=sys.executable, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(2) == b"up"
    return process


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    with start("Worker_TP0") as process:
        yield process
        process.kill()


@pytest.fixture
def core() -> Iterator[subprocess.Popen[bytes]]:
    with start("EngineCore") as process:
        yield process
        process.kill()


def test_members_are_those_that_vllm_titled(worker: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        titles = processes.members()
        other.kill()
    assert titles[worker.pid].startswith("Worker_TP0")
    assert other.pid not in titles


def test_the_end_of_one_member_is_reported_once_and_the_others_stay(
    worker: subprocess.Popen[bytes], core: subprocess.Popen[bytes]
) -> None:
    async def watch() -> None:
        ended: asyncio.Queue[str] = asyncio.Queue()
        await processes.watch(ended.put_nowait)
        worker.kill()
        assert (await asyncio.wait_for(ended.get(), 10)).startswith("Worker_TP0")
        await asyncio.sleep(0.1)
        assert ended.empty()

    asyncio.run(watch())
    assert core.poll() is None


@pytest.mark.parametrize("starts", ["before", "meanwhile"])
def test_first_end_waits_for_the_first_member_to_end(
    starts: str, core: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "DISCOVER_S", 0.05)
    started = [start("Worker_TP1")] if starts == "before" else []

    def strike() -> None:
        if not started:
            started.append(start("Worker_TP1"))
        threading.Timer(0.3, started[0].kill).start()

    threading.Timer(0.2, strike).start()
    assert processes.first_end({}).startswith("Worker_TP1")
    assert core.poll() is None
    with started[0]:
        pass


def test_a_started_process_that_ends_without_a_title_counts() -> None:
    with subprocess.Popen(["true"]) as short:
        assert processes.first_end({short.pid: "EngineCore_DP1"}) == "EngineCore_DP1"
    assert processes.first_end({short.pid: "EngineCore_DP1"}) == "EngineCore_DP1", "and is reaped"


def test_kill_ends_all_processes_below_this_one(
    worker: subprocess.Popen[bytes], core: subprocess.Popen[bytes]
) -> None:
    processes.kill()
    assert {worker.wait(10), core.wait(10)} == {-9}
    assert not [p for p in psutil.Process().children() if p.pid in (worker.pid, core.pid)]
