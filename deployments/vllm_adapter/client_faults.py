"""Errors of clients in vLLM's log: one line each, and no ERROR with a stack.

vLLM logs a bad parameter of a stream, or a model that is not served, as it logs its own failures
(vLLM 0.32 entrypoints/openai/chat_completion/serving.py, entrypoints/anthropic/api_router.py).
"""

from __future__ import annotations

import logging
from typing import Any, Final

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMClientError

ENTRY_POINTS: Final = "vllm.entrypoints."
KIND_ONLY: Final = "request refused: %s"
"""A sentence of vLLM's may have a client's text, so that only its kind is logged."""


class ClientFaults(logging.Filter):
    """Lowers the level of vLLM's lines about a client's error."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR or not record.name.startswith(ENTRY_POINTS):
            return True
        fault = _fault(record)
        if fault is not None:
            record.levelno, kind = fault
            record.levelname = logging.getLevelName(record.levelno)
            record.msg, record.args = KIND_ONLY, (kind,)
            record.exc_info = record.exc_text = None
        return True


def install() -> None:
    """Filter what this process logs of vLLM."""
    for handler in logging.getLogger("vllm").handlers:
        if not any(isinstance(one, ClientFaults) for one in handler.filters):
            handler.addFilter(ClientFaults())


def _fault(record: logging.LogRecord) -> tuple[int, str] | None:
    """Return level and kind of a client's error that the line is about; None if it is about
    another. Python's own errors are answered as the client's too, but may be vLLM's: WARNING."""
    error: Any = record.exc_info[1] if record.exc_info else None
    if isinstance(error, Exception):
        answer = create_error_response(error).error
        level = logging.INFO if isinstance(error, VLLMClientError) else logging.WARNING
        return (level, type(error).__name__) if answer.code < 500 else None
    for argument in record.args if isinstance(record.args, tuple) else ():
        if isinstance(argument, ErrorResponse) and argument.error.code < 500:
            return logging.INFO, argument.error.type
    return None
