"""PodLog: our log lines in the output of the pod, where `kubectl logs` finds them.

Ray sends the output of its workers to files in the pod, so `kubectl logs` shows only what `ray
start` prints. The chart names the output of the container's main process in POD_LOG; opening that
pipe once more needs only the same user. A line is dropped, never waited for, if the reader stops:
the pipe is opened without blocking, and only for this process. The next line has their number.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any, Final

from qwenfleet.cluster.config.logs import LogFormat
from qwenfleet.deployments.telemetry.log_lines import LineFormatter

POD_LOG: Final = "QWENFLEET_POD_LOG"
"""Variable that the chart sets to the path of the pod's output; unset elsewhere."""

logger = logging.getLogger(__name__)


class PodLogHandler(logging.Handler):
    """Writes lines to a pipe or file, without ever blocking. Raises OSError if the path cannot be
    opened."""

    def __init__(self, path: str, form: LogFormat, fields: dict[str, str]) -> None:
        super().__init__(logging.INFO)
        self._descriptor = _open(path)
        self._dropped = 0
        self.setFormatter(LineFormatter(form, fields))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                values = {**vars(record), "dropped_lines": self._dropped}
                record = logging.makeLogRecord(values)
            is_written = self._write(self.format(record))
            self._dropped = 0 if is_written else self._dropped + 1
        except Exception:  # as every handler of logging
            self.handleError(record)

    def _write(self, line: str) -> bool:
        """Write the line; returns False if the reader has not made room, or has ended."""
        try:
            os.write(self._descriptor, line.encode(errors="replace") + b"\n")
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class PodLog:
    """What the processes of one engine or gateway log with; it may be sent to other processes."""

    form: LogFormat = "plain"
    fields: dict[str, str] = field(default_factory=dict)
    """The fleet, model and engine, or the gateway, of each line."""

    def handler(self) -> logging.Handler | None:
        """A handler for this process; None outside a pod, or if its output cannot be opened."""
        path = os.environ.get(POD_LOG)
        if not path:
            return None
        try:
            return PodLogHandler(path, self.form, self.fields)
        except OSError as error:
            extra = {"path": path, "reason": error.strerror}
            logger.warning("cannot log to the output of the pod", extra=extra)
            return None

    def settings(self) -> dict[str, Any]:
        """The handler as an entry of logging's `dictConfig`, for vLLM's processes."""
        return {"()": f"{__name__}.{configured.__name__}", "form": self.form, "fields": self.fields}


def configured(form: LogFormat, fields: dict[str, str]) -> logging.Handler:
    """Make the handler of `PodLog.settings`."""
    return PodLog(form, dict(fields)).handler() or logging.NullHandler()


def _open(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    return os.open(path, flags)
