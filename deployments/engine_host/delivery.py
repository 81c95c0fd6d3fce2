"""Delivery: sends a step's outputs to a gateway, without those that it cannot carry.

An output that is too large costs its own request only.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import Output, Outputs, Rejected, shortened

logger = logging.getLogger(__name__)

LARGE_BYTES: Final = 32 * 1024
"""An output with more than this goes in a frame of its own, so that the tokens of other requests
overtake it."""
MAX_UNREAD_BYTES: Final = 128 * 1024 * 1024
"""While a gateway leaves this much unread, it gets no more outputs with logprobs and the like: two
of the largest frames. Plain tokens are 10 bytes each, and always fit."""


def send(connection: Connection, frame: Outputs) -> list[Rejected]:
    """Send the outputs of one step; returns the rejections of those that cannot be sent."""
    is_plain = not any(output.extra for output in frame.outputs)
    if is_plain and not connection.is_holding:
        return _send(connection, frame)
    together: list[Output] = []
    rejected = []
    for output in frame.outputs:
        if output.extra and connection.backlog_bytes > MAX_UNREAD_BYTES:
            reason = f"its gateway has left {connection.backlog_bytes} bytes unread"
            rejected.append(Rejected(wire_id=output.wire_id, reason=reason))
        elif len(output.extra or b"") > LARGE_BYTES or connection.holds(output.wire_id):
            rejected += _send(connection, msgspec.structs.replace(frame, outputs=[output]))
        else:
            together.append(output)
    if together:
        rejected += _send(connection, msgspec.structs.replace(frame, outputs=together))
    return rejected


def _send(connection: Connection, frame: Outputs) -> list[Rejected]:
    """Send a frame, or else each of its outputs in one of its own."""
    try:
        connection.send(frame)
    except Exception as error:
        extra = {"outputs": len(frame.outputs), "reason": shortened(str(error))}
        logger.exception("failed to send outputs", extra=extra)
        if len(frame.outputs) > 1:
            each = (msgspec.structs.replace(frame, outputs=[output]) for output in frame.outputs)
            return [rejection for one in each for rejection in _send(connection, one)]
        reason = shortened(f"its output cannot be sent: {error}")
        return [Rejected(wire_id=output.wire_id, reason=reason) for output in frame.outputs]
    return []
