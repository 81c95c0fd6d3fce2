"""Tests the CPU time of a process tree: time of ended processes still counts."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from qwenfleet.loadtest import process_tree

BURN = """
import sys, time
while time.process_time() < 0.2: pass
if "stay" in sys.argv: time.sleep(60)
"""
FAMILY = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", {BURN!r}, *sys.argv[1:]])
print(child.pid, flush=True)
sys.stdin.readline()
child.wait()
print("waited", flush=True)
sys.stdin.readline()
"""
"""A parent whose child uses 0.2 s of CPU; it waits for the child on request."""
BURNT_S = 0.185
"""The kernel counts in ticks of 10 ms."""


@pytest.fixture
def family() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the parent; the first line that it says is its child's pid."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", FAMILY, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def printed(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_child_counts_while_it_lives(family: Any, soon: Any) -> None:
    parent = psutil.Process(family("stay").pid)
    soon(lambda: process_tree.cpu_s(parent) >= BURNT_S)
    assert parent.children()[0].status() != psutil.STATUS_ZOMBIE
    assert process_tree.cpu_s(parent) < 2, "its own time, and no other process's"


def test_a_child_counts_after_it_ended_and_after_it_was_waited_for(family: Any, soon: Any) -> None:
    process = family()
    parent, child = psutil.Process(process.pid), psutil.Process(int(printed(process)))
    soon(lambda: child.status() == psutil.STATUS_ZOMBIE)
    ended_s = process_tree.cpu_s(parent)
    assert ended_s >= BURNT_S
    tell(process)
    assert printed(process) == "waited"
    assert process_tree.cpu_s(parent) == pytest.approx(ended_s, abs=0.021)


def test_a_grandchild_counts_too(family: Any) -> None:
    before_s = process_tree.cpu_s()
    process = family()
    printed(process)
    tell(process)
    assert printed(process) == "waited"
    assert process_tree.cpu_s() - before_s >= BURNT_S


def test_processes_are_classified_by_their_command_lines(family: Any, soon: Any) -> None:
    for name in ("left", "right"):
        family("stay", name)

    def kind_of(command: str) -> str:
        return next(
            (name for name in ("left", "right") if command.endswith(f"stay {name}")), "rest"
        )

    soon(lambda: min(map(process_tree.cpu_s_by(kind_of).get, ("left", "right"), (0, 0))) >= BURNT_S)


def test_ended_process_is_classified_by_its_name(family: Any, soon: Any) -> None:
    process = family()
    parent, child = psutil.Process(process.pid), psutil.Process(int(printed(process)))
    soon(lambda: child.status() == psutil.STATUS_ZOMBIE)
    (name,) = process_tree.cpu_s_by(str, parent)
    assert name == child.name()


ADOPT = f"""
import json, os, subprocess, sys, time
import psutil
from qwenfleet.loadtest import process_tree

if sys.argv[1] == "adopt":
    process_tree.adopt_orphans()
middle = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2).pid)"
burn = {BURN!r}

def orphan(*arguments):
    command = [sys.executable, "-S", "-c", middle, sys.executable, "-S", "-c", burn, *arguments]
    return psutil.Process(int(subprocess.run(command, stdout=subprocess.PIPE).stdout))

def until(claim):
    give_up_at = time.monotonic() + 20
    while not claim() and time.monotonic() < give_up_at:
        time.sleep(0.02)
    return bool(claim())

living = orphan("stay")
is_ours = living in psutil.Process().children(recursive=True)
burnt = until(lambda: process_tree.cpu_s_by(str)[" ".join(living.cmdline())] > 0.185) \\
    if is_ours else False
living.kill()
ended = until(lambda: living.status() == "zombie" if is_ours else not living.is_running())
ended_s = process_tree.cpu_s()
process_tree.reap(psutil.Process().children())
print(json.dumps({{
    "is_ours": is_ours,
    "burnt": burnt,
    "counts_when_ended": ended_s > 0.185,
    "counts_when_reaped": process_tree.cpu_s() > 0.185,
    "is_reaped": not psutil.Process().children(),
}}))
"""


def test_an_orphan_stays_in_the_tree_that_adopts_it(python_says: Any) -> None:
    assert set(python_says(ADOPT, "adopt").values()) == {True}


def test_an_orphan_is_lost_to_a_process_that_does_not_adopt(python_says: Any) -> None:
    assert python_says(ADOPT, "ignore")["is_ours"] is False


def test_reaping_leaves_living_children_alone(family: Any) -> None:
    process = family("stay")
    process_tree.reap(psutil.Process().children())
    assert process.poll() is None
    assert psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE


def test_a_kernel_that_refuses_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldKernel:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def prctl(self, *_: int) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", OldKernel)
    with pytest.raises(OSError, match="does not support PR_SET_CHILD_SUBREAPER"):
        process_tree.adopt_orphans()
