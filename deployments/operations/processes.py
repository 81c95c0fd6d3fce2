"""Which processes belong to a fleet of this machine, and their end.

Every process that a fleet starts inherits the path of the fleet's Ray token in its environment,
also when its parent is gone; that tells them from those of any other Ray cluster.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import psutil

from qwenfleet.cluster.local import fleets

GRACE_S: Final = 10.0
"""Ray's processes were gone 3 s after a shutdown; what is left after this would stay for ever."""


def of_fleet(token_path: Path) -> list[psutil.Process]:
    """The living processes of the fleet that made this token, ourselves left out."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("RAY_AUTH_TOKEN_PATH") == str(token_path)
        except psutil.Error:
            continue  # ended meanwhile, or another user's
        if is_ours and process.pid != os.getpid():
            found.append(process)
    return found


def end_fleet(token_path: Path) -> None:
    """Wait for the fleet's processes to end, then end those that do not."""
    _, left = psutil.wait_procs(of_fleet(token_path), timeout=GRACE_S)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=GRACE_S)


def sweep() -> None:
    """End what fleets left that were killed before they could clean up, and remove their files."""
    for token_path in fleets.state_directory().glob("*.token"):
        if token_path.stem.isdigit() and not psutil.pid_exists(int(token_path.stem)):
            for process in of_fleet(token_path):
                process.kill()
            remove_files(token_path)


def remove_files(token_path: Path) -> None:
    """The token and what lies beside it."""
    for suffix in (".token", ".log", ".haproxy", ".json"):
        token_path.with_suffix(suffix).unlink(missing_ok=True)
