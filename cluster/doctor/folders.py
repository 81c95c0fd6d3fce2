"""Sockets and logs of running programs that other users of this machine can use."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok

ADMIN: Final = "admin.sock"
"""HAProxy's administration socket, as Ray Serve names it (ray 2.60
serve/_private/constants.py)."""
RAYLET: Final = ("sockets", "raylet")
"""A raylet's socket in the folder of its session (ray 2.60 _private/node.py)."""
UNIX_SOCKETS: Final = Path("/proc/net/unix")


@dataclass(frozen=True)
class Folder:
    """A folder, and who else may use what it has."""

    path: str
    mode: int
    """Permission bits of the folder."""
    has_admin_socket: bool = False
    """Whether it has a HAProxy's administration socket; otherwise it is a Ray session's."""

    @property
    def is_open(self) -> bool:
        """Whether other users may enter it."""
        return bool(self.mode & 0o011)


@dataclass(frozen=True)
class Folders:
    folders: tuple[Folder, ...]


def read() -> Folders:
    """Find the folders by the sockets that are bound in them. Raises OSError."""
    lines = UNIX_SOCKETS.read_text(errors="replace").splitlines()[1:]
    return Folders(tuple(_found(Path(words[7]) for words in map(str.split, lines) if words[7:])))


def _found(sockets: Iterable[Path]) -> Iterable[Folder]:
    for path in sorted(set(sockets)):
        is_admin = path.name == ADMIN
        is_raylet = path.parts[-2:-1] == RAYLET[:1] and path.name.startswith(RAYLET[1])
        if not (is_admin or is_raylet):
            continue
        folder = path.parent if is_admin else path.parent.parent
        try:
            mode = stat.S_IMODE(folder.stat().st_mode)
        except OSError:  # its program has ended, or this user may not look
            continue
        yield Folder(str(folder), mode, has_admin_socket=is_admin)


def judge(folders: Folders) -> list[Finding]:
    """Findings about folders that others may enter."""
    found = [_finding(folder) for folder in folders.folders if folder.is_open]
    count = len(folders.folders)
    summary = (
        f"{count} folder{'' if count == 1 else 's'} with sockets and logs of running programs, "
        "open to the owner only"
    )
    return found or [ok(Subject.FILES, summary)]


def _finding(folder: Folder) -> Finding:
    can = (
        "control HAProxy through the socket in it"
        if folder.has_admin_socket
        else "read the logs of its Ray session and replace its files"
    )
    return note(
        Subject.FILES,
        f"{folder.path} has mode {folder.mode:04o}, so other users of this machine can {can}",
        f"Run `chmod 700 {folder.path}`, or restart the fleet: its replicas close their folders.",
    )
