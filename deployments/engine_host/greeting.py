"""Greeter: what a host does with a connection until its gateway has proved the secret.

Until then anybody may be at the other end, so it costs little: a first frame of 4 KB at most, a
few connections in all, one deadline, and one log line in a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Final

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.engine_host import admission
from qwenfleet.deployments.wire import secret
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import (
    MAX_SUBMIT_BYTES,
    Challenge,
    Hello,
    Proof,
    Refused,
    Renew,
)

logger = logging.getLogger(__name__)

MAX_STRANGERS: Final = 64
"""Connections that have not proved the secret, as many as a large fleet's gateways may open at
once. One holds at most 400 KB."""
QUIET_S: Final = 10.0
"""Time between two log lines about strangers."""


class Greeter:
    """Decides which connections are gateways."""

    def __init__(
        self,
        engine: str,
        secret: str,
        vllm_version: str,
        *,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._secret = secret
        self._vllm_version = vllm_version
        self._timeout_s = timeout_s
        self._clock = clock
        self._strangers: dict[Connection, str] = {}
        """Their addresses, the oldest connection first."""
        self._refusals = 0
        self._logged_at: float | None = None

    async def meet(
        self, connection: Connection, address: str, open_sessions: Container[str]
    ) -> tuple[Hello, bytes] | Renew | None:
        """Return the Hello of a gateway that knows the secret, and the proof for its Welcome; or
        the first frame of a lease pump, with a key that is not checked yet; None for anybody else,
        after a Refused frame if it can read one."""
        try:
            with self._stranger(connection, address):
                async with asyncio.timeout(self._timeout_s):
                    hello, proof = await self._prove(connection)
        except (OSError, ProtocolError) as error:  # with TimeoutError
            self._refused(address, str(error) or "it did not send its greeting in time")
            return None
        if isinstance(hello, Renew):
            return hello
        if not isinstance(hello, Refused):
            hello = admission.refuse_second(hello, open_sessions) or hello
        if isinstance(hello, Refused):
            connection.send(hello)
            self._refused(address, hello.reason)
            return None
        connection.accept(MAX_SUBMIT_BYTES)
        return hello, proof

    async def _prove(self, connection: Connection) -> tuple[Hello | Renew | Refused, bytes]:
        hello = await connection.receive()
        if isinstance(hello, Renew):
            return hello, b""
        if not isinstance(hello, Hello):
            raise ProtocolError(f"the first frame was {type(hello).__name__} instead of Hello")
        refused = admission.refuse_session(hello, self._vllm_version)
        if refused is not None:
            return refused, b""
        challenge = Challenge(secret.nonce())
        connection.send(challenge)
        proof = await connection.receive()
        if not isinstance(proof, Proof):
            raise ProtocolError(f"the second frame was {type(proof).__name__} instead of Proof")
        known = (self._secret, hello.gateway, hello.nonce, challenge.nonce)
        if not secret.is_equal(proof.proof, secret.gateway_proof(*known)):
            return admission.refusal("wrong secret for this engine"), b""
        return hello, secret.engine_proof(*known)

    @contextmanager
    def _stranger(self, connection: Connection, address: str) -> Iterator[None]:
        """Count a connection as a stranger's. If there are too many, the oldest of the address
        with most of them goes: a gateway's greeting takes milliseconds."""
        if len(self._strangers) >= MAX_STRANGERS:
            ((crowded, _),) = Counter(self._strangers.values()).most_common(1)
            oldest = next(known for known, at in self._strangers.items() if at == crowded)
            del self._strangers[oldest]
            oldest.abort()
        self._strangers[connection] = address
        try:
            yield
        finally:
            self._strangers.pop(connection, None)

    def _refused(self, address: str, reason: str) -> None:
        self._refusals += 1
        now = self._clock()
        if self._logged_at is None or now - self._logged_at >= QUIET_S:
            extra = {
                "engine": self._engine,
                "address": address,
                "reason": reason,
                "connections": self._refusals,
            }
            logger.warning("connection refused", extra=extra)
            self._refusals, self._logged_at = 0, now
