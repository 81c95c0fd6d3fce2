"""Leases: which gateways a host takes for alive.

Every frame of a gateway renews its lease, and so does a connection of its lease pump, which a busy
event loop cannot stop. A session ends when its lease has lapsed and its connection has been stuck
for as long: a gateway that only stands still goes on where it was, and one whose machine or network
is lost acknowledges nothing.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from qwenfleet.deployments.engine_host.attempts import Session
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import AnyFrame, Renew, UnreadableSubmit

KEY_BYTES: Final = 16
"""Nobody guesses 128 bits."""


class Leases:
    """The leases of a host's sessions. Times are those of `clock`, in seconds."""

    def __init__(self, lease_s: float, clock: Callable[[], float]) -> None:
        self._lease_s = lease_s
        self._clock = clock

    def open(self, gateway: str, connection: Connection) -> Session:
        """Return a new session with a full lease."""
        now = self._clock()
        return Session(
            gateway,
            connection,
            now + self._lease_s,
            lease_key=secrets.token_bytes(KEY_BYTES),
            moved_at=now,
        )

    def renew(self, session: Session) -> None:
        session.leased_until = self._clock() + self._lease_s

    async def follow(
        self, connection: Connection, first: Renew, sessions: Mapping[str, Session]
    ) -> None:
        """Renew the lease of an open session with each frame of its lease pump, and return once it
        has ended. Raises ConnectionError when the pump has disconnected."""
        frame: AnyFrame | UnreadableSubmit = first
        while isinstance(frame, Renew):
            session = sessions.get(frame.session)
            if session is None or not hmac.compare_digest(frame.key, session.lease_key):
                return
            self.renew(session)
            frame = await connection.receive()

    def lapsed(self, sessions: Iterable[Session]) -> list[Session]:
        """Return the sessions to end. Called with every heartbeat, which also gives each connection
        something to acknowledge."""
        now = self._clock()
        lapsed = []
        for session in sessions:
            acknowledged = session.connection.acknowledged_bytes
            if acknowledged != session.acknowledged_bytes:
                session.acknowledged_bytes, session.moved_at = acknowledged, now
            is_stuck = now - session.moved_at >= self._lease_s
            if is_stuck and session.leased_until < now:
                lapsed.append(session)
        return lapsed

    def excuse(self, sessions: Iterable[Session], stalled_s: float) -> None:
        """Do not count a stall of this process: what came meanwhile is still unread."""
        for session in sessions:
            session.leased_until += stalled_s
            session.moved_at += stalled_s
