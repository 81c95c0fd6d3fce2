"""WebSocket upgrades, which no route takes, answered as HTTP."""

from __future__ import annotations

from typing import Final

from starlette.types import Message, Scope, Send

EXTENSION: Final = "websocket.http.response"
"""The part of ASGI by which a server sends an HTTP answer in place of a handshake."""
POLICY_VIOLATION: Final = 1008
"""Close code for servers without the extension; they answer 403 (RFC 6455, 7.4.1)."""


def as_http(scope: Scope, send: Send) -> Send:
    """Return a `send` for HTTP messages, which answers the upgrade with them."""
    can_answer = EXTENSION in scope.get("extensions", {})

    async def answer(message: Message) -> None:
        if can_answer:
            await send({**message, "type": f"websocket.{message['type']}"})
        elif message["type"] == "http.response.start":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})

    return answer
