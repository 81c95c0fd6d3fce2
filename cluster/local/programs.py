"""Owners of processes on this machine: a fleet, another Ray cluster, or neither."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil

from qwenfleet.cluster.local.fleets import RunningFleet

T = TypeVar("T")
_SESSION = re.compile(r"\bsession_[\d-]+_[\d-]+_\d+_\d+")
_GCS_ADDRESS = re.compile(r"--gcs-address=(\S+:\d+)")


@dataclass(frozen=True)
class Program:
    """One process."""

    pid: int
    parent: int
    name: str
    user: str
    session: str = ""
    """Ray session, if this is one of Ray's servers and its command line names it."""
    token_path: str = ""
    """Path of the Ray token that it was started with."""
    auth_mode: str = ""
    """RAY_AUTH_MODE; empty if unset or unreadable."""


@dataclass(frozen=True)
class Owner:
    """A fleet of this user, or another Ray cluster; all fields are empty if it is neither."""

    fleet: str = ""
    fleet_pid: int = 0
    session: str = ""

    @property
    def is_ray(self) -> bool:
        return bool(self.fleet or self.session)


NO_OWNER = Owner()
"""Owner of processes that are not part of any Ray cluster."""


def read(pids: Iterable[int]) -> dict[int, Program]:
    """Read these processes and their ancestors, as far as this user may see them."""
    programs: dict[int, Program] = {}
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid <= 0 or pid in programs:
            continue
        try:
            programs[pid] = _read_one(psutil.Process(pid))
        except psutil.Error:
            continue  # it has ended
        waiting.append(programs[pid].parent)
    return programs


def ray_addresses() -> list[str]:
    """Addresses of the Ray clusters with a raylet on this machine that this user may see."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet":
            found |= set(_GCS_ADDRESS.findall("\n".join(process.info["cmdline"] or ())))
    return sorted(found)


def owner(pid: int, programs: Mapping[int, Program], fleets: Sequence[RunningFleet]) -> Owner:
    """Owner of a process, from its own and its ancestors' pids, tokens and command lines. Ancestors
    count because Ray's agents overwrite their own environment."""
    session = ""
    for program in _ancestry(pid, programs):  # a fleet wins over any session
        for running in fleets:
            if program.pid == running.pid or program.token_path == running.ray_token_path:
                return Owner(running.name, running.pid)
        session = session or program.session or _session_of_child(program.pid, programs)
    return Owner(session=session)


def _ancestry(pid: int, programs: Mapping[int, Program]) -> Iterator[Program]:
    seen = set()
    while pid in programs and pid not in seen:
        seen.add(pid)
        yield programs[pid]
        pid = programs[pid].parent


def _session_of_child(pid: int, programs: Mapping[int, Program]) -> str:
    """Session of a driver that started a Ray cluster: the driver is the parent of its GCS."""
    for program in programs.values():
        if program.parent == pid and program.name == "gcs_server":
            return program.session
    return ""


def _read_one(process: psutil.Process) -> Program:
    with process.oneshot():
        command = _or_none(process.cmdline) or []
        environment = _or_none(process.environ) or {}
        match = _SESSION.search("\n".join(command))
        return Program(
            pid=process.pid,
            parent=process.ppid(),
            name=_name(process.name(), command),
            user=_or_none(process.username) or "another user",
            session=match[0] if match and _is_of_ray(command) else "",
            token_path=environment.get("RAY_AUTH_TOKEN_PATH", ""),
            auth_mode=environment.get("RAY_AUTH_MODE", "").lower(),
        )


def _name(name: str, command: Sequence[str]) -> str:
    """Name of a program; for Python that of its script or module."""
    if not name.startswith("python"):
        return name.removeprefix("ray::").partition(":")[0]
    words = iter(command[1:])
    for word in words:
        if word == "-m":
            return next(words, name)
        if word.endswith(".py"):
            return os.path.basename(word)
        if not word.startswith("-"):
            break
    return name


def _is_of_ray(command: Sequence[str]) -> bool:
    """True for Ray's own programs, but not for an editor or `tail` that opens a session's log."""
    return any("/site-packages/ray/" in word or "/ray/core/" in word for word in command[:3])


def _or_none(read: Callable[[], T]) -> T | None:
    """The value, or None if it belongs to another user's process."""
    try:
        return read()
    except psutil.AccessDenied:
        return None
