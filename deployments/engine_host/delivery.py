"""Delivery: sends a step's outputs to a gateway, without those that no frame can carry."""

from __future__ import annotations

import logging

import msgspec

from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import Outputs, Rejected

logger = logging.getLogger(__name__)


def send(connection: Connection, frame: Outputs) -> list[Rejected]:
    """Send the outputs of one step. One that cannot be encoded, such as prompt logprobs beyond a
    frame's limit, costs its own request only: returns the rejections of those."""
    try:
        connection.send(frame)
    except Exception:
        logger.exception("failed to send outputs", extra={"outputs": len(frame.outputs)})
    else:
        return []
    rejected = []
    for output in frame.outputs:
        try:
            connection.send(msgspec.structs.replace(frame, outputs=[output]))
        except Exception as error:  # logged above
            reason = f"its output cannot be sent: {error}"
            rejected.append(Rejected(wire_id=output.wire_id, reason=reason))
    return rejected
