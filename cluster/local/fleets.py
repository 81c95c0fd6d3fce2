"""Files in which fleets on this machine register themselves, for `qwenfleet status` and others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil


@dataclass(frozen=True)
class RunningFleet:
    """One `qwenfleet serve` of this user."""

    pid: int
    started_at: float
    """Start of the process in seconds since the epoch, which identifies it if its pid is reused."""
    name: str
    url: str
    ray_address: str
    ray_token_path: str
    metrics_port: int
    models: list[str]
    """Ids of the configured models, with or without running engines."""
    has_keys: bool = False
    """True if requests need an API key."""
    ray_logs: str = ""
    """Directory of Ray's logs."""

    @property
    def port(self) -> int | None:
        """Port on which it answers HTTP."""
        return urlsplit(self.url).port


def state_directory() -> Path:
    """The directory of these files. Only this user can read it: it holds tokens of Ray clusters."""
    root = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    directory = Path(root) / "qwenfleet"
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    return directory


def write(record: RunningFleet) -> Path:
    path = state_directory() / f"{record.pid}.json"
    path.write_text(json.dumps(asdict(record)), encoding="utf-8")
    return path


def running() -> list[RunningFleet]:
    """Fleets whose process is alive, the newest first. Files of dead ones are removed once their
    token is."""
    found = []
    for path, record in _records():
        if _lives(record):
            found.append(record)
        elif not Path(record.ray_token_path).exists():
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda record: record.started_at, reverse=True)


def killed() -> list[RunningFleet]:
    """Fleets whose launcher was killed, and whose processes may still run."""
    return [
        record
        for _, record in _records()
        if not _lives(record) and Path(record.ray_token_path).exists()
    ]


def _records() -> Iterator[tuple[Path, RunningFleet]]:
    for path in state_directory().glob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            yield path, RunningFleet(**json.loads(path.read_text(encoding="utf-8")))


def own_start() -> float:
    """Start of this process in seconds since the epoch."""
    return float(psutil.Process().create_time())


def _lives(record: RunningFleet) -> bool:
    try:
        return abs(psutil.Process(record.pid).create_time() - record.started_at) < 1.0
    except psutil.Error:
        return False
