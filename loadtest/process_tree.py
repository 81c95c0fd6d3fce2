"""CPU time of every process that descends from this one, by the operating system's count."""

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
    """Be the parent of descendants whose own parent ends, so that they stay in the tree."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this kernel gives orphans to nobody but init")


def cpu_s(root: psutil.Process | None = None) -> float:
    """User and system time so far of all descendants of `root` (this process when it is None),
    those included that ended."""
    root = root or psutil.Process()
    return sum(cpu_s_by(lambda command: "all", root).values()) + sum(root.cpu_times()[2:4])


def cpu_s_by(kind_of: Callable[[str], str], root: psutil.Process | None = None) -> dict[str, float]:
    """The same, by kind of process; `kind_of` is given a process's command line. Children of `root`
    that it has waited for are left out: nobody knows what they were."""
    totals: dict[str, float] = defaultdict(float)
    for process in (root or psutil.Process()).children(recursive=True):
        with suppress(psutil.Error):
            totals[kind_of(_command(process))] += sum(process.cpu_times()[:4])
    return dict(totals)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.ZombieProcess:
        return process.name()  # it ended and is not waited for yet; its time still counts


def reap(processes: Iterable[psutil.Process]) -> None:
    """Collect those of these that we adopted and that have ended."""
    for process in processes:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
