"""Both ends of the wire, driven by a test: a gateway's, and an engine's that proves the secret."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from qwenfleet.deployments.wire import secret as proofs
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import (
    MAX_OUTPUTS_BYTES,
    MAX_SUBMIT_BYTES,
    PROTOCOL_VERSION,
    AnyFrame,
    Challenge,
    Frame,
    Hello,
    Outputs,
    Proof,
    Submit,
    UnreadableSubmit,
    Welcome,
)
from qwenfleet.deployments.wire.tokens import TokenIds

SECRET = "open sesame"
PATIENCE_S = 10.0
"""Much longer than any wait here takes on an idle machine; the machine may be busy."""

F = TypeVar("F")

numbers = itertools.count(1)
"""Numbers for the attempts of all peers."""


@dataclass
class Peer:
    """A gateway's end of the wire, driven by the test."""

    gateway: str
    connection: Connection
    seen: list[AnyFrame | UnreadableSubmit] = field(default_factory=list)

    async def receive(self, kind: type[F]) -> F:
        """Return the next frame of this kind; earlier frames go to `seen`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                frame = await self.connection.receive()
                self.seen.append(frame)
                if isinstance(frame, kind):
                    return frame

    def submit(
        self,
        request_id: str,
        prompt: Sequence[int] = (1, 2, 3),
        attempt: int = 0,
        number: int | None = None,
        **fields: Any,
    ) -> int:
        """Send an attempt; returns its number, which no other peer uses, unless it is given."""
        number = next(numbers) if number is None else number
        tokens = TokenIds(prompt)
        self.connection.send(Submit(request_id, attempt, tokens, b"", number=number, **fields))
        return number

    async def greet(self, secret: str = SECRET, **hello: Any) -> AnyFrame | UnreadableSubmit:
        """Prove the secret; returns the host's last answer."""
        nonce = proofs.nonce()
        fields: dict[str, Any] = {"protocol": PROTOCOL_VERSION, "nonce": nonce} | hello
        self.connection.send(Hello(self.gateway, **fields))
        answer = await self.connection.receive()
        if isinstance(answer, Challenge):
            known = (secret, self.gateway, nonce, answer.nonce)
            self.connection.send(Proof(proofs.gateway_proof(*known)))
            answer = await self.connection.receive()
        if isinstance(answer, Welcome):
            self.connection.accept(MAX_OUTPUTS_BYTES)
        self.seen.append(answer)
        return answer

    async def tokens(self, key: int, count: int | None = None) -> list[int]:
        """Return the tokens of one attempt: `count` of them, or all."""
        tokens: list[int] = []
        while True:
            for output in (await self.receive(Outputs)).outputs:
                if output.wire_id == key:
                    tokens += output.token_ids
                    if output.finish_reason is not None or len(tokens) == count:
                        return tokens

    async def until_closed(self) -> ConnectionError:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    self.seen.append(await self.connection.receive())
                except ConnectionError as error:
                    return error


class Impostor(Connection):
    """An engine's end of the wire that proves the secret in its Welcome."""

    proof = b""

    async def greet(self, secret: str) -> None:
        hello = await self.receive()
        assert isinstance(hello, Hello)
        challenge = Challenge(proofs.nonce())
        self.send(challenge)
        assert isinstance(await self.receive(), Proof)
        known = (secret, hello.gateway, hello.nonce, challenge.nonce)
        self.proof = proofs.engine_proof(*known)
        self.accept(MAX_SUBMIT_BYTES)

    def send(self, frame: Frame) -> None:
        is_welcome = isinstance(frame, Welcome) and not frame.proof
        super().send(msgspec.structs.replace(frame, proof=self.proof) if is_welcome else frame)
