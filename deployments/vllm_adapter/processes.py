"""The processes that vLLM runs below this one, and the moment at which one of them ends.

vLLM notices a dead worker at once and speaks of it when the others are gone too, for which it
gives them 4 s twice: one that waits for the dead one inside a collective takes both.
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
"""vLLM 0.32 utils/system_utils.py, set_process_title; then EngineCore_DP0, Worker_TP1 and so on."""
DISCOVER_S: Final = 2.0
"""How often processes that started meanwhile are looked for, which reads all of /proc."""


def members() -> dict[int, str]:
    """Title by process id of vLLM's processes below this one."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = " ".join(process.cmdline()).strip()
            if title.startswith(TITLE):
                found[process.pid] = title.removeprefix(TITLE)
    return found


async def watch(on_end: Callable[[str], None]) -> None:
    """Call `on_end` on the running loop with the title of each member of now, once it ends."""
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
    """Wait until one of `started` (names by process id) or any member ends, those that start
    meanwhile included; returns its title. A process that ends before it has a title is no
    member."""
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
    """End every process below this one at once."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
