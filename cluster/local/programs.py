"""Whose a process of this machine is: a fleet's, another Ray cluster's, or somebody else's."""

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
    """Ray's, when this is a server of Ray's whose command line names it."""
    token_path: str = ""
    """Of the Ray token that it was started with."""
    auth_mode: str = ""
    """RAY_AUTH_MODE; empty when it has none, or may not be read."""


@dataclass(frozen=True)
class Owner:
    """A fleet of this user, or a Ray cluster that is none; neither for everybody else."""

    fleet: str = ""
    fleet_pid: int = 0
    session: str = ""

    @property
    def is_ray(self) -> bool:
        return bool(self.fleet or self.session)


NOBODY = Owner()
"""Of programs that have nothing to do with Ray."""


def read(pids: Iterable[int]) -> dict[int, Program]:
    """These processes and all that they descend from, as far as this user may see them."""
    programs: dict[int, Program] = {}
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid <= 0 or pid in programs:
            continue
        try:
            programs[pid] = _read_one(psutil.Process(pid))
        except psutil.Error:
            continue  # ended meanwhile
        waiting.append(programs[pid].parent)
    return programs


def ray_addresses() -> list[str]:
    """Of the clusters that have a raylet on this machine, as far as this user may see them."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet":
            found |= set(_GCS_ADDRESS.findall("\n".join(process.info["cmdline"] or ())))
    return sorted(found)


def owner(pid: int, programs: Mapping[int, Program], fleets: Sequence[RunningFleet]) -> Owner:
    """By what a process and its ancestors carry: Ray's agents overwrite their own environment."""
    session = ""
    for program in _ancestry(pid, programs):
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
    """A driver that started a Ray cluster is the parent of its GCS."""
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
    """A Python program is told by its script or module."""
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
    """Not an editor or `tail` that looks at a session's log."""
    return any("/site-packages/ray/" in word or "/ray/core/" in word for word in command[:3])


def _or_none(read: Callable[[], T]) -> T | None:
    """What another user's process may not tell."""
    try:
        return read()
    except psutil.AccessDenied:
        return None
