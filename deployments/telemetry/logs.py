"""Writes our log lines to Serve's log of each replica, as JSON, and to the output of its pod."""

from __future__ import annotations

import logging
import logging.handlers
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from ray.serve.schema import LoggingConfig

from qwenfleet.cluster.local.private import close_to_others, session_of
from qwenfleet.deployments.telemetry.pod_log import PodLog

REPLICA_LOG: Final = LoggingConfig(encoding="JSON", enable_access_log=False)
"""Without Serve's access log: ours knows the model, the key and the tokens."""
SERVE: Final = "ray.serve"


def join_serve_log(pod_log: PodLog) -> str | None:
    """Send our and vLLM's log lines to Serve's handlers and to the pod; return the file of the
    former, if any."""
    handlers = list(logging.getLogger(SERVE).handlers)
    for handler in handlers:
        _keep_open(handler)
    _send_to(handlers, has_file=bool(handlers))
    of_pod = pod_log.handler()  # may complain, which needs Serve's
    if of_pod is not None:  # first, because Serve's add their own fields to a record
        _send_to([of_pod, *handlers], has_file=bool(handlers))
    for handler in handlers:
        target = handler.target if isinstance(handler, logging.handlers.MemoryHandler) else handler
        if isinstance(target, logging.FileHandler):
            close_session(target.baseFilename)
            return target.baseFilename
    return None


def close_session(file: str | None) -> None:
    """Let only this user read the logs of the Ray session that this file is in, and use its
    sockets. Each new worker of Ray opens the folder again (ray 2.60 _private/node.py)."""
    session = None if file is None else session_of(Path(file))
    if session is not None:
        with suppress(OSError):
            close_to_others(session)


def access_log_handlers(pod_log: PodLog) -> list[logging.Handler]:
    """Return where the access log goes: to the pod as JSON, and to Serve's log of the replica."""
    of_pod = replace(pod_log, form="json").handler()
    return [*([] if of_pod is None else [of_pod]), *logging.getLogger(SERVE).handlers]


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
