"""Where a fleet that runs on this machine leaves word of itself, for `qwenfleet status` to find."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil


@dataclass(frozen=True)
class RunningFleet:
    """One `qwenfleet serve` of this user."""

    pid: int
    started_at: float
    """The process's start, in seconds since the epoch, which tells it from a later one with its
    pid."""
    name: str
    url: str
    ray_address: str
    ray_token_path: str
    metrics_port: int
    models: list[str]
    """The ids of the configuration, whether engines run for them or not."""
    has_keys: bool = False
    """Whether requests need an API key."""

    @property
    def port(self) -> int | None:
        """Where it answers HTTP."""
        return urlsplit(self.url).port


def state_directory() -> Path:
    """Readable by this user only: it holds the tokens of the fleets' Ray clusters."""
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
    """Fleets whose process lives, the newest first; files of dead ones are removed."""
    found = []
    for path in state_directory().glob("*.json"):
        try:
            record = RunningFleet(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if _lives(record):
            found.append(record)
        else:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda record: record.started_at, reverse=True)


def own_start() -> float:
    """When this process started, in seconds since the epoch."""
    return float(psutil.Process().create_time())


def _lives(record: RunningFleet) -> bool:
    try:
        return abs(psutil.Process(record.pid).create_time() - record.started_at) < 1.0
    except psutil.Error:
        return False
