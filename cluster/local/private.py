"""Folders that only their owner may enter, although other programs make them open to all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

SESSION: Final = "session_"
"""Start of the name of a Ray session's folder, with its logs and sockets (ray 2.60
_private/node.py, which gives them mode 777)."""


def close_to_others(folder: Path) -> None:
    """Let only this user enter a folder of its own. One that all may write to, such as /tmp, is
    left as it is. Raises OSError."""
    found = folder.stat()
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX:
        folder.chmod(0o700)


def session_of(path: Path) -> Path | None:
    """Return the folder of the Ray session that a file belongs to; None if it is in none."""
    return next((folder for folder in path.parents if folder.name.startswith(SESSION)), None)
