"""Writes our log lines to Serve's log of each replica, as JSON."""

from __future__ import annotations

import logging
import logging.handlers
from typing import Final

from ray.serve.schema import LoggingConfig

REPLICA_LOG: Final = LoggingConfig(encoding="JSON", enable_access_log=False)
"""Without access log: HAProxy has one, and a line per request costs more than routing it."""


def join_serve_log() -> str | None:
    """Send our and vLLM's log lines to Serve's handlers; return their file, if any."""
    handlers = list(logging.getLogger("ray.serve").handlers)
    for handler in handlers:
        _keep_open(handler)
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


def _keep_open(handler: logging.Handler) -> None:
    """Keep `logging.config` from closing Serve's handler: it closes every handler of its process.
    Serve's controller, when it starts again, asks each replica for the file of this handler, and
    replaces the replica if it is closed."""
    handler.close = handler.flush  # type: ignore[method-assign]
