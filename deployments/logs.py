"""Our log lines in Serve's log of each replica: one file, as JSON, for Serve and for us."""

from __future__ import annotations

import logging
import logging.handlers
from typing import Final

from ray.serve.schema import LoggingConfig

REPLICA_LOG: Final = LoggingConfig(encoding="JSON", enable_access_log=False)
"""No access log: HAProxy has one, and a line for each request costs more than routing it."""


def join_serve_log() -> str | None:
    """Send what `qwenfleet` loggers say where Serve's go; returns that file, when there is one."""
    ours = logging.getLogger("qwenfleet")
    ours.handlers = list(logging.getLogger("ray.serve").handlers)
    ours.setLevel(logging.INFO)
    ours.propagate = not ours.handlers
    for handler in ours.handlers:
        target = handler.target if isinstance(handler, logging.handlers.MemoryHandler) else handler
        if isinstance(target, logging.FileHandler):
            return target.baseFilename
    return None
