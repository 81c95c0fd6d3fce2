"""Log records as single lines, plain or JSON, for readers that split at line ends. Pure."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from qwenfleet.cluster.config.logs import LogFormat

MAX_BYTES: Final = 4096
"""A pipe takes lines up to PIPE_BUF (Linux: 4096 bytes) whole, even if others write to it."""
LIMITS: Final = (2000, 400, 60)
"""Characters of a value: the longest at which the line fits."""
STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "fileinfo",  # vLLM's formatter
    "vllm_process_name",  # vLLM 0.32 logger.py, _VllmLogRecordFactory
}
"""Attributes of a record that are not its `extra`; nor are those of Ray, which begin with `_`."""


class LineFormatter(logging.Formatter):
    """Formats a record as one line of at most MAX_BYTES, with the `fields` of its process."""

    def __init__(self, form: LogFormat, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._form = form
        self._fields = dict(fields)

    def format(self, record: logging.LogRecord) -> str:
        values = _values(record, self._fields)
        write = _json if self._form == "json" else _plain
        for limit in LIMITS:
            line = write({name: _cut(value, limit) for name, value in values.items()})
            if len(line.encode(errors="replace")) < MAX_BYTES:
                return line
        return write({name: _cut(values[name], LIMITS[-1]) for name in ("time", "level", "event")})


def _values(record: logging.LogRecord, fields: Mapping[str, str]) -> dict[str, Any]:
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    values: dict[str, Any] = {
        "time": f"{at}.{int(record.msecs):03}Z",
        "level": record.levelname,
        "event": " ".join(record.getMessage().split()),
        **fields,
    }
    for name, value in vars(record).items():
        if name not in STANDARD and not name.startswith("_") and value is not None:
            values[name] = value
    if "request" not in values and isinstance(attempt := values.get("attempt"), str):
        values["request"] = attempt.partition("@")[0].rpartition(".")[0]
    if record.name.partition(".")[0] != "qwenfleet":
        values["process"] = getattr(record, "vllm_process_name", record.name)
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        values["exception"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return values


def _cut(value: Any, limit: int) -> Any:
    if isinstance(value, int | float):
        return value
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)


def _plain(values: Mapping[str, Any]) -> str:
    rest = {name: v for name, v in values.items() if name not in ("time", "level", "event")}
    pairs = [f"{name}={_quoted(value)}" for name, value in rest.items()]
    return " ".join([values["time"], values["level"], values["event"], *pairs])


def _quoted(value: Any) -> str:
    text = str(value)
    is_plain = text and not any(c.isspace() or c in '"=' for c in text)
    return text if is_plain else json.dumps(text, ensure_ascii=False)
