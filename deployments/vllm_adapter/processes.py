"""Processes: vLLM's processes below this one, watched so that the end of one is noticed at once.

vLLM itself notices a dead worker at once, but reports it only after the others have ended, for
which it waits up to 4 s twice: a worker inside a collective with the dead one needs both.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import psutil

TITLE: Final = "VLLM::"
"""Title prefix (vLLM 0.32 utils/system_utils.py, set_process_title), followed by EngineCore_DP0,
Worker_TP1 and so on."""
DISCOVER_S: Final = 2.0
"""Interval of the search for new processes, which reads all of /proc."""


def members() -> dict[int, str]:
    """Titles of vLLM's processes below this one, by process id."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = " ".join(process.cmdline()).strip()
            if title.startswith(TITLE):
                found[process.pid] = title.removeprefix(TITLE)
    return found


async def watch(on_end: Callable[[str], None]) -> None:
    """Call `on_end` on the running loop with the title of each current member when it ends."""
    loop = asyncio.get_running_loop()

    def ended(descriptor: int, title: str) -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        on_end(title)

    for pid, title in (await asyncio.to_thread(members)).items():
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            on_end(title)
        else:
            loop.add_reader(descriptor, ended, descriptor, title)


def first_end(started: Mapping[int, str]) -> str:
    """Wait until one of `started` (names by process id) or any member ends, including members that
    start meanwhile; returns its title. A process that ends before it has a title does not count as
    a member."""
    titles: dict[int, str] = {}
    known: set[int] = set()
    poll = select.poll()
    while True:
        for pid, title in {**started, **members()}.items():
            if pid not in known:
                known.add(pid)
                try:
                    descriptor = os.pidfd_open(pid)
                except ProcessLookupError:
                    return title
                titles[descriptor] = title
                poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(DISCOVER_S * 1000):
            return titles[descriptor]


def kill() -> None:
    """Kill every process below this one."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
