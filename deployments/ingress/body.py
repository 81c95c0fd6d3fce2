"""The body of a request, from its client."""

from __future__ import annotations

from starlette.types import Receive, Scope

from qwenfleet.deployments.ingress.admission import Admission, Place
from qwenfleet.deployments.ingress.errors import BodyTooLarge, MalformedBody


async def read_body(
    scope: Scope, receive: Receive, limit_bytes: int, admission: Admission, place: Place
) -> bytes:
    """Read the whole body; refuse it as soon as it is known to be too large.

    Raises BodyTooLarge, MalformedBody and TooManyRequests.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit_bytes:
            raise BodyTooLarge(limit_bytes, int(value))
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise MalformedBody("the client closed the connection before its end")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes, None)
        admission.count(place, len(chunks[-1]))
        if not message.get("more_body", False):
            return b"".join(chunks)
