"""CPU time of all descendants of this process, as counted by the operating system."""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import psutil

PR_SET_CHILD_SUBREAPER: Final = 36
"""linux/prctl.h"""


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, so that they stay in the tree."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this kernel does not support PR_SET_CHILD_SUBREAPER")


def cpu_s(root: psutil.Process | None = None) -> float:
    """Return user and system time of all descendants of `root` (default: this process), including
    ended ones."""
    root = root or psutil.Process()
    return sum(cpu_s_by(lambda command: "all", root).values()) + sum(root.cpu_times()[2:4])


def cpu_s_by(kind_of: Callable[[str], str], root: psutil.Process | None = None) -> dict[str, float]:
    """Return CPU time by kind of process; `kind_of` gets a process's command line. Children that
    `root` has already waited for are left out: their kind is not known."""
    totals: dict[str, float] = defaultdict(float)
    for process in (root or psutil.Process()).children(recursive=True):
        with suppress(psutil.Error):
            totals[kind_of(_command(process))] += sum(process.cpu_times()[:4])
    return dict(totals)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.ZombieProcess:
        return process.name()  # ended but not yet waited for; its time still counts


def reap(processes: Iterable[psutil.Process]) -> None:
    """Wait for adopted processes that have ended."""
    for process in processes:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
