"""Parts of a fleet on this machine other than engines and gateways, and what their death means.

`Parts` judges readings; `PartReader` makes them, and asks only the kernel, which answers when Ray
does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from qwenfleet.cluster.errors import FleetLost


@dataclass(frozen=True)
class Part:
    """One process that a fleet has once."""

    name: str
    title: str
    """Its process name or, for an actor, the title that Ray gives to its process."""
    consequence: str = ""
    """What goes on without it; empty if nothing does."""


GCS: Final = Part("Ray's GCS", "gcs_server")
RAYLET: Final = Part("Ray's raylet", "raylet")
VITAL: Final = (GCS, RAYLET)
"""Ray ends within a minute without its GCS, and replaces nothing without its raylet."""
CONTROLLER: Final = Part(
    "Serve's controller",
    "ray::ServeController",
    "Ray starts another; requests go on, but nothing else that dies is replaced until then",
)
REGISTRY: Final = Part(
    "the registry",
    "ray::RegistryActor",
    "Ray starts another, to which engines and gateways announce themselves; requests go on",
)
ACTORS: Final = (CONTROLLER, REGISTRY)


class Parts:
    """Compares each reading, pids by part, with the one before."""

    def __init__(self, logs: str) -> None:
        """`logs` is the directory of Ray's logs."""
        self._logs = logs
        self._pids: dict[Part, int] = {}
        self._missing: set[Part] = set()

    def news(self, reading: Mapping[Part, int]) -> list[str]:
        """Return a sentence for each part that died or came back.

        Raises FleetLost when a part has died without which the fleet cannot run.
        """
        sentences = []
        for part in VITAL:
            if part not in reading or self._pids.get(part, reading[part]) != reading[part]:
                raise self._lost(part)
            self._pids[part] = reading[part]
        for part in ACTORS:
            pid, known = reading.get(part), self._pids.get(part)
            if known is not None and pid != known and part not in self._missing:
                sentences.append(f"{_named(part, known)} died: {part.consequence}")
                self._missing.add(part)
            if pid is not None:
                if part in self._missing:
                    sentences.append(f"{part.name} runs again, as process {pid}")
                    self._missing.discard(part)
                self._pids[part] = pid
        return sentences

    def _lost(self, part: Part) -> FleetLost:
        return FleetLost(
            f"{_named(part, self._pids.get(part))} died, and without it the fleet cannot run",
            f"Start the fleet again; Ray's logs are in {self._logs}.",
        )


def _named(part: Part, pid: int | None) -> str:
    return part.name if pid is None else f"{part.name} (process {pid})"


class PartReader:
    """Finds the parts below one process, the fleet's launcher."""

    def __init__(self, launcher: int) -> None:
        self._launcher = launcher
        self._found: dict[Part, psutil.Process] = {}

    def read(self) -> dict[Part, int]:
        """Return the pid of each part that runs. Only a missing one costs a search."""
        self._found = {part: one for part, one in self._found.items() if _lives(one)}
        self._search(VITAL, self._launcher)
        raylet = self._found.get(RAYLET)
        if raylet is not None:
            self._search(ACTORS, raylet.pid)
        return {part: process.pid for part, process in self._found.items()}

    def _search(self, parts: Iterable[Part], parent: int) -> None:
        missing = [part for part in parts if part not in self._found]
        if not missing:
            return
        for process in _children(parent):
            title = title_of(process)
            for part in missing:
                if title == part.title and _lives(process):
                    self._found[part] = process


class Restarts:
    """Reads what HAProxy's keeper notes about its restarts."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._read = 0

    def news(self) -> list[str]:
        """Return a sentence for each restart since the last call."""
        with suppress(FileNotFoundError), self._journal.open(encoding="ascii") as file:
            file.seek(self._read)
            lines = [line for line in file if line.endswith("\n")]
            self._read += sum(map(len, lines))
            return [_sentence(json.loads(line)) for line in lines]
        return []


def _sentence(entry: dict[str, float]) -> str:
    return (
        f"HAProxy died and runs again after {entry['down_s']:.1f} s, as process {entry['pid']}: "
        "the requests in it were cut, new ones are answered"
    )


def _children(parent: int) -> list[psutil.Process]:
    try:
        return psutil.Process(parent).children()
    except psutil.Error:
        return []


def title_of(process: psutil.Process) -> str:
    """Return a process's name or, without the method that runs, the title that Ray or vLLM gave it;
    empty if it has ended."""
    try:
        words = process.cmdline()
        has_title = bool(words) and "::" in words[0]
        return words[0].partition(".")[0] if has_title else process.name()
    except psutil.Error:
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
