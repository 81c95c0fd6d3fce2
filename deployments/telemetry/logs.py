"""Writes our log lines to Serve's log of each replica, as JSON, and to the output of its pod."""

from __future__ import annotations

import logging
import logging.handlers
from typing import Final

from ray.serve.schema import LoggingConfig

from qwenfleet.deployments.telemetry.pod_log import PodLog

REPLICA_LOG: Final = LoggingConfig(encoding="JSON", enable_access_log=False)
"""Without access log: HAProxy has one, and a line per request costs more than routing it."""


def join_serve_log(pod_log: PodLog) -> str | None:
    """Send our and vLLM's log lines to Serve's handlers and to the pod; return the file of the
    former, if any."""
    handlers = list(logging.getLogger("ray.serve").handlers)
    for handler in handlers:
        _keep_open(handler)
    _send_to(handlers, has_file=bool(handlers))
    of_pod = pod_log.handler()  # may complain, which needs Serve's
    if of_pod is not None:  # first, because Serve's add their own fields to a record
        _send_to([of_pod, *handlers], has_file=bool(handlers))
    for handler in handlers:
        target = handler.target if isinstance(handler, logging.handlers.MemoryHandler) else handler
        if isinstance(target, logging.FileHandler):
            return target.baseFilename
    return None


def _send_to(handlers: list[logging.Handler], *, has_file: bool) -> None:
    for name in ("qwenfleet", "vllm"):
        ours = logging.getLogger(name)
        ours.handlers = handlers
        ours.setLevel(logging.INFO)
        ours.propagate = not has_file


def _keep_open(handler: logging.Handler) -> None:
    """Keep `logging.config` from closing Serve's handler: it closes every handler of its process.
    Serve's controller, when it starts again, asks each replica for the file of this handler, and
    replaces the replica if it is closed."""
    handler.close = handler.flush  # type: ignore[method-assign]
