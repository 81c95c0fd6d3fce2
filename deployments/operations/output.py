"""Keeps what Ray prints about its processes away from what a person reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final

STDERR: Final = 2


@contextmanager
def ray_output_to(path: Path) -> Iterator[None]:
    """Send it to a file for the length of the block; its C++ part writes to the descriptor."""
    with path.open("a", encoding="utf-8") as file:
        terminal = os.dup(STDERR)
        os.dup2(file.fileno(), STDERR)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            os.dup2(terminal, STDERR)
            os.close(terminal)
