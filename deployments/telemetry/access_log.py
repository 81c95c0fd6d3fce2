"""The access log: one line per request, written by a thread. It has counts and names, never text.

The lines go to Serve's log of the gateway and, always as JSON, to the output of its pod. A thread
formats and writes them, so that a slow disk holds no stream up. A line is dropped, never waited
for, when WAITING_LINES are waiting already.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

WAITING_LINES: Final = 10_000
"""Some 5 MB."""
LOGGER: Final = "qwenfleet.access"
UNKNOWN: Final = "unknown"
"""Stands for a path that is not served and a method that HTTP does not have: a client's text stays
out of the log."""


@dataclass(slots=True)
class AccessEntry:
    """What the log says about one request. Durations are seconds; fields without a value are left
    out."""

    method: str
    route: str = UNKNOWN
    key: str = ""
    """The name of its key: the comment in the keys file, or the start of the key's hash."""
    model: str = ""
    request: str = ""
    """The id that vLLM's front end gave it; the other log lines have it too."""
    status: int | None = None
    """HTTP status; None if the client disconnected before there was one."""
    outcome: str = ""
    reason: str = ""
    """Code of the error that ended it."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft_s: float | None = None
    duration_s: float = 0.0
    engine: str = ""
    """The engine that had it last."""
    resumes: int = 0
    """Engines that had it after the first one."""


FIELDS: Final = tuple(field.name for field in fields(AccessEntry))


class AccessLog:
    """Writes entries to `handlers` until it is closed; without handlers, it does nothing."""

    def __init__(self, handlers: Sequence[logging.Handler] = ()) -> None:
        self._handlers = tuple(handlers)
        self._dropped = 0
        self._waiting: queue.SimpleQueue[tuple[float, int, AccessEntry] | None]
        self._waiting = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        if handlers:
            self._thread.start()

    def note(self, entry: AccessEntry) -> None:
        """Write the entry of a request that has ended."""
        if not self._handlers:
            return
        if self._waiting.qsize() >= WAITING_LINES:
            self._dropped += 1
            return
        self._waiting.put((time.time(), self._dropped, entry))
        self._dropped = 0

    def close(self) -> None:
        """Write what waits, and end the thread. Blocks for as long as the writing takes."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _write(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            record = _record(*waiting)
            for handler in self._handlers:
                handler.handle(record)


def _record(at: float, dropped: int, entry: AccessEntry) -> logging.LogRecord:
    values: dict[str, Any] = {
        "name": LOGGER,
        "levelno": logging.INFO,
        "levelname": "INFO",
        "msg": "request",
        "created": at,
        "msecs": int(at % 1 * 1000),
    }
    for field in FIELDS:
        value = getattr(entry, field)
        if value not in ("", None):
            values[field] = round(value, 4) if isinstance(value, float) else value
    if dropped:
        values["dropped_lines"] = dropped
    return logging.makeLogRecord(values)
