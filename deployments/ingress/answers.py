"""Errors in the format of each API family: as an HTTP body, or inside a stream that has begun."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import msgspec

from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.ingress.field_errors import FieldError

_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
"""Anthropic's error types by status (platform.claude.com, "Errors"); any other is `api_error`."""


class Family(Enum):
    """API conventions that a route follows."""

    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


def family_of(path: str) -> Family:
    if path.startswith("/v1/messages"):
        return Family.ANTHROPIC
    if path.startswith("/v1/responses"):
        return Family.RESPONSES
    return Family.OPENAI


def error_body(error: FleetError, family: Family) -> bytes:
    """Return the JSON body of an HTTP error."""
    if family is Family.ANTHROPIC:
        return msgspec.json.encode(_anthropic(error))
    return msgspec.json.encode({"error": _openai(error)})


def error_event(error: FleetError, family: Family, sequence: int = 0) -> bytes:
    """Return the last server-sent event of a failed stream; `[DONE]` does not follow it.

    `sequence` is the number of events before it: the Responses API numbers events from 0.
    """
    match family:
        case Family.ANTHROPIC:
            data: dict[str, Any] = _anthropic(error)
        case Family.RESPONSES:
            data = {
                "type": "error",
                "sequence_number": sequence,
                "code": error.code,
                "message": str(error),
                "param": _param(error),
            }
        case Family.OPENAI:
            data = {"error": _openai(error)}
    return b"event: error\ndata: " + msgspec.json.encode(data) + b"\n\n"


def keep_alive(family: Family) -> bytes:
    """Return the event that keeps a silent stream open in clients and proxies."""
    if family is Family.ANTHROPIC:
        return b'event: ping\ndata: {"type": "ping"}\n\n'
    return b": ping\n\n"


def headers(error: FleetError) -> list[tuple[bytes, bytes]]:
    fields = [(b"content-type", b"application/json")]
    if error.retry_after_s is not None:
        fields.append((b"retry-after", str(error.retry_after_s).encode()))
    if error.status == 401:
        fields.append((b"www-authenticate", b"Bearer"))
    return fields


def _openai(error: FleetError) -> dict[str, Any]:
    return {
        "message": str(error),
        "type": error.kind,
        "param": _param(error),
        "code": error.code,
    }


def _param(error: FleetError) -> str | None:
    return error.param if isinstance(error, FieldError) else None


def _anthropic(error: FleetError) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}
