"""Outbox: the large attempts that a link has yet to send.

They wait here as they are, and are encoded one by one as the engine reads: their requests hold
their tokens anyway. Small ones do not wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import SMALL_FRAME_BYTES, Rejected, Submit
from qwenfleet.deployments.wire.tokens import TOKEN_BYTES

logger = logging.getLogger(__name__)

FIXED_BYTES: Final = 1024
"""The names and numbers of a Submit, and its trace context, at most."""


def largest_bytes(submit: Submit) -> int:
    """Return what an attempt takes when it is encoded, or a little more, without encoding it."""
    tokens = len(submit.prompt_token_ids) + len(submit.output_token_ids)
    texts = len((submit.cache_salt or "").encode()) + len(submit.request_id.encode())
    return len(submit.request) + tokens * TOKEN_BYTES + texts + FIXED_BYTES


class Outbox:
    """Sends attempts over one connection, in their order if they are large."""

    def __init__(self, connection: Connection, reject: Callable[[Rejected], None]) -> None:
        """Calls `reject` for an attempt that turns out not to be sendable after `submit`."""
        self._connection = connection
        self._reject = reject
        self._waiting: dict[int, Submit] = {}

    @property
    def waiting_bytes(self) -> int:
        """What the attempts that wait take when they are encoded, or a little more."""
        return sum(largest_bytes(submit) for submit in self._waiting.values())

    def submit(self, submit: Submit) -> bool:
        """Send an attempt, or keep it until there is room; returns whether `run` has to send it.
        Raises whatever its encoding raises."""
        if largest_bytes(submit) > SMALL_FRAME_BYTES:
            self._waiting[submit.number] = submit
            return True
        self._connection.send(submit)
        return False

    def withdraw(self, number: int) -> bool:
        """Forget an attempt that is not sent yet; False if there is none."""
        return self._waiting.pop(number, None) is not None

    async def run(self) -> None:
        """Send what waits, until there is nothing left."""
        while self._waiting:
            await self._connection.drain()
            if not self._waiting:  # withdrawn meanwhile
                return
            submit = self._waiting.pop(next(iter(self._waiting)))
            try:
                self._connection.send(submit)
            except Exception as error:  # the others go on
                logger.exception("failed to send an attempt", extra={"number": submit.number})
                reason = f"it cannot be sent: {type(error).__name__}"
                self._reject(Rejected(submit.number, reason))
