"""Parts of a fleet on this machine as processes, and ways to end one of them."""

from __future__ import annotations

import enum
import os
import signal
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import psutil

from qwenfleet.deployments.operations import parts as operations
from qwenfleet.deployments.operations import processes


class Part(enum.StrEnum):
    """A part of a fleet; the value is a pattern of its processes' titles."""

    GATEWAY = "ray::ServeReplica:*:gateway"
    ENGINE = "ray::ServeReplica:*:engine-*"
    CORE = "VLLM::EngineCore*"
    HAPROXY = "haproxy"
    CONTROLLER = operations.CONTROLLER.title
    REGISTRY = operations.REGISTRY.title
    GCS = operations.GCS.title
    RAYLET = operations.RAYLET.title


def of_fleet(token_path: Path) -> dict[Part, list[psutil.Process]]:
    """Return the processes of each part of the fleet with this Ray token, the oldest first."""
    found: dict[Part, list[psutil.Process]] = {part: [] for part in Part}
    for process in processes.of_fleet(token_path):
        part = part_of(operations.title_of(process))
        if part is not None:
            found[part].append(process)
    for members in found.values():
        members.sort(key=_started_at)
    return found


def part_of(title: str) -> Part | None:
    """Return the part whose processes have this title; None for other processes."""
    return next((part for part in Part if fnmatchcase(title, part)), None)


def resident_bytes(token_path: Path) -> dict[Part, int]:
    """Return the resident memory of each part; shared pages count once for each process."""
    totals: dict[Part, int] = {}
    for part, members in of_fleet(token_path).items():
        for process in members:
            with suppress(psutil.Error):
                totals[part] = totals.get(part, 0) + process.memory_info().rss
    return totals


def strike(process: psutil.Process, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process, if it still runs."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _started_at(process: psutil.Process) -> float:
    try:
        return float(process.create_time())
    except psutil.Error:
        return 0.0
