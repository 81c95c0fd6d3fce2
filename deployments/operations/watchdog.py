"""Watchdog of a fleet on this machine: ends the fleet's processes when its launcher is killed.

Ray ends its own processes with the launcher; HAProxy would stay and answer for a dead fleet. The
launcher starts the watchdog as a program, and holds the other end of its standard input.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from qwenfleet.deployments.operations.processes import descendants, kill_all, remove_files

GOODBYE: Final = b"\n"
"""What a launcher writes that has ended its fleet itself."""
LOOK_S: Final = 2.0
"""Time between two looks at the launcher's descendants. Ray's agents overwrite their environment,
so the token does not find them, and it takes them a minute to notice that their GCS is dead."""
PASS_S: Final = 0.5
"""Time between two searches: a process that was being started is found by the next one."""


@contextmanager
def watched(token_path: Path) -> Iterator[None]:
    """Keep a watchdog for the length of the block. Its environment lacks the fleet's token, so it
    is not one of the fleet's processes."""
    watchdog = subprocess.Popen(
        [sys.executable, "-m", __name__, str(token_path)],
        env={name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN_PATH"},
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for the launcher
    )
    try:
        yield
    finally:
        try:
            watchdog.communicate(GOODBYE)
        except OSError:
            watchdog.wait()


def main(token_path: Path) -> None:
    """Wait until the launcher ends. If it was killed, end the fleet and remove its files."""
    launcher = os.getppid()
    family: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        family |= descendants(launcher)
        family = {process for process in family if process.is_running()}
    if sys.stdin.buffer.read():
        return
    while kill_all(token_path, family):
        time.sleep(PASS_S)
    remove_files(token_path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
