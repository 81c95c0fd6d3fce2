"""Our log lines in Serve's log of each replica: one file, as JSON, for Serve and for us."""

from __future__ import annotations

import logging
import logging.handlers
from typing import Final

from ray.serve.schema import LoggingConfig

REPLICA_LOG: Final = LoggingConfig(encoding="JSON", enable_access_log=False)
"""No access log: HAProxy has one, and a line for each request costs more than routing it."""


def join_serve_log() -> str | None:
    """Send what our and vLLM's loggers say where Serve's go; returns that file, if there is one."""
    handlers = list(logging.getLogger("ray.serve").handlers)
    for name in ("qwenfleet", "vllm"):
        ours = logging.getLogger(name)
        ours.handlers = handlers
        ours.setLevel(logging.INFO)
        ours.propagate = not handlers
    for handler in handlers:
        target = handler.target if isinstance(handler, logging.handlers.MemoryHandler) else handler
        if isinstance(target, logging.FileHandler):
            return target.baseFilename
    return None
