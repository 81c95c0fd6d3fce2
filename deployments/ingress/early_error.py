"""Errors that vLLM writes as the first event of a stream, found before a byte has left. Pure.

vLLM's chat and completion streams check some parameters only after their answer has begun, and send
the error as an event (vLLM 0.32 entrypoints/openai/chat_completion/serving.py). If nothing was sent
before, the client can have its status instead.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_PREFIX: Final = b'data: {"error":'


class _Event(msgspec.Struct):
    error: dict[str, Any]


def early_error(event: bytes) -> tuple[int, bytes] | None:
    """Return the HTTP status and the JSON body of an error event; None if it is none."""
    if not event.startswith(_PREFIX):
        return None
    body = event.removeprefix(b"data: ").partition(b"\n")[0]
    try:
        status = msgspec.json.decode(body, type=_Event).error.get("code")
    except msgspec.DecodeError:
        return None
    return (status, body) if isinstance(status, int) and 400 <= status < 600 else None
