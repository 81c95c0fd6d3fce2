"""Finds and ends the processes of a fleet on this machine.

Every process that a fleet starts inherits the path of the fleet's Ray token in its environment,
even after its parent has ended. This distinguishes them from processes of other Ray clusters.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from qwenfleet.cluster.local import fleets

GRACE_S: Final = 10.0
"""Ray's processes ended 3 s after a shutdown; what still runs after this would run forever."""

SEARCHES: Final = 3
"""A process that was being started during one search is found by the next."""


def of_fleet(token_path: Path) -> list[psutil.Process]:
    """Return the running processes of the fleet that made this token, except this process."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("RAY_AUTH_TOKEN_PATH") == str(token_path)
        except psutil.Error:
            continue  # it ended, or belongs to another user
        if is_ours and process.pid != os.getpid():
            found.append(process)
    return found


def end_fleet(token_path: Path, grace_s: float = GRACE_S) -> None:
    """Wait for the fleet's processes to end, then kill the rest."""
    psutil.wait_procs(of_fleet(token_path), timeout=grace_s)
    for _ in range(SEARCHES):
        if not kill_all(token_path):
            return


def descendants(pid: int) -> set[psutil.Process]:
    """Return the children of a process and theirs, except this process."""
    try:
        return {child for child in psutil.Process(pid).children(True) if child.pid != os.getpid()}
    except psutil.NoSuchProcess:
        return set()


def kill_all(token_path: Path, others: Iterable[psutil.Process] = ()) -> bool:
    """Kill the fleet's processes and these; returns whether there were any."""
    found = [one for one in {*of_fleet(token_path), *others} if not _is_zombie(one)]
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=GRACE_S)
    return bool(found)


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def sweep() -> None:
    """Kill leftover processes of fleets that were killed before cleanup, and remove their files."""
    for token_path in fleets.state_directory().glob("*.token"):
        if token_path.stem.isdigit() and not psutil.pid_exists(int(token_path.stem)):
            kill_all(token_path)
            remove_files(token_path)


def remove_files(token_path: Path) -> None:
    """Remove the token and the files next to it."""
    for suffix in (".token", ".log", ".haproxy", ".restarts", ".json"):
        token_path.with_suffix(suffix).unlink(missing_ok=True)
