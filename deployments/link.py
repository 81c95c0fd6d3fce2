"""EngineLink: a gateway's end of the wire to one engine."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from qwenfleet.cluster.config import WireConfig
from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.connection import Connection
from qwenfleet.deployments.registry import EngineRecord
from qwenfleet.deployments.routing import Target
from qwenfleet.deployments.transport import (
    Abort,
    Alive,
    AnyFrame,
    Draining,
    EngineDescription,
    Hello,
    Lease,
    Lost,
    Outputs,
    RankLoad,
    Refused,
    Rejected,
    Submit,
    Welcome,
    speaks,
)

logger = logging.getLogger(__name__)

SILENCE_HEARTBEATS: Final = 6
"""A host that missed this many heartbeats is gone, even if no reset says so (a black hole)."""


class LinkEvents(Protocol):
    """What a link tells its fleet client. None of these may raise."""

    def on_outputs(self, link: EngineLink, frame: Outputs) -> None: ...

    def on_rejected(self, link: EngineLink, frame: Rejected) -> None: ...

    def on_lost(self, link: EngineLink, reason: str) -> None: ...


class EngineLink:
    """Lives from a connection to its loss; `on_lost` is called once, whatever ended it."""

    def __init__(
        self,
        record: EngineRecord,
        *,
        gateway: str,
        wire: WireConfig,
        events: LinkEvents,
        clock: Callable[[], float],
    ) -> None:
        self.engine = record.id
        self.is_draining = False
        self.description: EngineDescription | None = None
        self._record = record
        self._gateway = gateway
        self._wire = wire
        self._events = events
        self._clock = clock
        self._connection: Connection | None = None
        self._load: list[RankLoad] = []
        self._sent = 0
        self._unseen: deque[tuple[int, int, int]] = deque()
        """(number, dp_rank, prompt tokens) of submits that the engine's load does not count yet."""

    async def run(self) -> None:
        """Connect, then carry frames until the engine is gone."""
        reason = "the engine closed the connection"
        try:
            connection = await self._connect()
            async with asyncio.TaskGroup() as tasks:
                lease = tasks.create_task(self._keep_lease(connection))
                reason = await self._listen(connection)
                lease.cancel()
        except* (OSError, TimeoutError, ProtocolError) as errors:
            reason = _sentence(errors.exceptions[0])
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._events.on_lost(self, reason)

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def submit(self, submit: Submit) -> None:
        assert self._connection is not None, "submit on a closed link"
        self._sent += 1
        self._unseen.append((self._sent, submit.dp_rank or 0, len(submit.prompt_token_ids)))
        self._connection.send(submit)

    def abort(self, wire_ids: list[str]) -> None:
        if self._connection is not None:
            self._connection.send(Abort(wire_ids=wire_ids))

    def targets(self) -> list[Target]:
        """What routing chooses from: the engine's last word plus what went out since."""
        return [
            Target(
                engine=self.engine,
                dp_rank=rank.dp_rank,
                streams=rank.running
                + rank.waiting
                + sum(1 for _, dp_rank, _ in self._unseen if dp_rank == rank.dp_rank),
                queued_prefill_tokens=rank.queued_prefill_tokens
                + sum(tokens for _, dp_rank, tokens in self._unseen if dp_rank == rank.dp_rank),
            )
            for rank in self._load
        ]

    async def _connect(self) -> Connection:
        async with asyncio.timeout(self._wire.connect_timeout_s):
            reader, writer = await asyncio.open_connection(self._record.host, self._record.port)
            connection = Connection(reader, writer)
            try:
                connection.send(Hello(gateway=self._gateway, secret=self._record.secret))
                self._meet(await connection.receive())
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        return connection

    def _meet(self, greeting: AnyFrame) -> None:
        match greeting:
            case Welcome(protocol=protocol, description=description) if speaks(protocol):
                self.description = description
                self._load = [RankLoad(dp_rank=r) for r in range(description.data_parallel_size)]
            case Welcome(protocol=protocol):
                raise ProtocolError(f"engine {self.engine} speaks protocol {protocol}")
            case Refused(reason=reason):
                raise ProtocolError(f"engine {self.engine} refused us: {reason}")
            case _:
                raise ProtocolError(f"engine {self.engine} greeted with {type(greeting).__name__}")

    async def _listen(self, connection: Connection) -> str:
        """Returns why the engine left, when it says so itself."""
        silence_s = max(self._wire.heartbeat_s * SILENCE_HEARTBEATS, self._wire.lease_s)
        while True:
            async with asyncio.timeout(silence_s):
                frame = await connection.receive()
            match frame:
                case Outputs(load=load, received=received):
                    self._note_load(load, received)
                    self._events.on_outputs(self, frame)
                case Alive(load=load, received=received):
                    self._note_load(load, received)
                case Rejected():
                    self._events.on_rejected(self, frame)
                case Draining(reason=reason):
                    logger.info("engine drains", extra={"engine": self.engine, "reason": reason})
                    self.is_draining = True
                case Lost(reason=reason):
                    return reason
                case _:
                    logger.debug("frame ignored", extra={"kind": type(frame).__name__})

    def _note_load(self, load: list[RankLoad], received: int) -> None:
        if load:
            self._load = load
        while self._unseen and self._unseen[0][0] <= received:
            self._unseen.popleft()

    async def _keep_lease(self, connection: Connection) -> None:
        while True:
            await asyncio.sleep(self._wire.lease_s / 3)
            connection.send(Lease())


def _sentence(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the engine was silent for too long"
    return str(error) or type(error).__name__
