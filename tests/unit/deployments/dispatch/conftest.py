"""A gateway's dispatcher over real engine hosts, and a network that can swallow data."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.ingress.exchange import Exchange
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.wire.frames import Output
from qwenfleet.deployments.wire.tokens import TokenIds

PATIENCE_S = 10.0
"""Far more than any wait here needs, because the machine may be busy."""


@dataclass(eq=False)
class Stream:
    """One request as its client sees it."""

    flight: Flight
    tokens: list[int] = field(default_factory=list)
    finish_reason: int | None = None
    error: FleetError | None = None

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None or self.error is not None


class Desk:
    """A gateway's dispatcher with a hand-made front end."""

    def __init__(
        self,
        gateway: str,
        wire: WireConfig,
        metrics: Any,
        clock: Any,
        kind: type[Dispatcher] = Dispatcher,
    ) -> None:
        self.metrics = metrics
        self.streams: dict[str, Stream] = {}
        self.limits: list[int] = []
        self.gateway = gateway
        self.dispatcher = kind(
            "coder",
            gateway=gateway,
            wire=wire,
            retry_after_s=5,
            metrics=metrics,
            clock=clock,
            rng=random.Random(0),
        )
        self.dispatcher.attach(self)

    def ask(
        self,
        name: str,
        prompt: Sequence[int] = (1, 2, 3),
        *,
        max_tokens: int | None = None,
        priority: int = 0,
        exchange: Exchange | None = None,
        payload: bytes = b"",
    ) -> Stream:
        flight = Flight(name, TokenIds(prompt), payload, max_tokens, priority, None, exchange)
        stream = self.streams[name] = Stream(flight)
        self.dispatcher.add(flight)
        return stream

    def link(self, engine: Any) -> EngineLink | None:
        return self.dispatcher._roster._links.get(engine.record.id)

    async def meet(self, *engines: Any) -> None:
        """Wait until each is connected; a waiting request may have killed it by then."""
        self.dispatcher.update([engine.record for engine in engines])
        links = [self.link(engine) for engine in engines]
        async with asyncio.timeout(PATIENCE_S):
            while not all(link is not None and link.description is not None for link in links):  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def close(self) -> None:
        tasks = list(self.dispatcher._roster._tasks.values())
        self.dispatcher.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def deliver(
        self, outputs: list[tuple[Flight, Output, bool]], shift_s: float, now: float
    ) -> None:
        for flight, output, is_first in outputs:
            stream = self.streams[flight.request_id]
            assert not stream.is_over, "a token after the end"
            assert is_first == (not stream.tokens)
            stream.tokens += output.token_ids
            stream.finish_reason = output.finish_reason

    def fail(self, flight: Flight, error: FleetError) -> None:
        stream = self.streams[flight.request_id]
        assert not stream.is_over, "an error after the end"
        stream.error = error

    def limit(self, max_model_len: int) -> None:
        self.limits.append(max_model_len)


@pytest.fixture(scope="session")
def desk_class() -> type[Desk]:
    return Desk


@pytest_asyncio.fixture
async def new_desk(
    serve_engine: object, wire: WireConfig, metrics: Any
) -> AsyncIterator[Callable[..., Desk]]:
    """Create gateways, which close before the engines do."""
    desks: list[Desk] = []

    def new(
        gateway: str = "gw-a",
        *,
        wire: WireConfig = wire,
        clock: Any = time.monotonic,
        **fields: Any,
    ) -> Desk:
        desks.append(Desk(gateway, wire, metrics, clock, **fields))
        return desks[-1]

    yield new
    for desk in desks:
        await desk.close()


@pytest.fixture
def desk(new_desk: Callable[..., Desk]) -> Desk:
    return new_desk()


class Relay:
    """A network between gateways and an engine that can swallow data."""

    def __init__(self, record: EngineRecord, room_bytes: int = 4096) -> None:
        """`room_bytes` is what it takes and acknowledges while it drops everything."""
        self.record = record
        self._target = record
        self._room_bytes = room_bytes
        self._server: asyncio.Server | None = None
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.record = replace(self._target, host=host, port=port)

    def swallow(self) -> None:
        """Drop everything from now on, without closing a connection."""
        self._is_open.clear()

    def heal(self) -> None:
        self._is_open.set()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio turns Nagle's algorithm off only for a socket that names its protocol.
        far = socket.socket(proto=socket.IPPROTO_TCP)
        far.setblocking(False)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._room_bytes)
        try:
            there = self._target.host, self._target.port
            await asyncio.get_running_loop().sock_connect(far, there)
        except OSError:  # the engine has ended
            far.close()
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(sock=far, limit=self._room_bytes)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pipe(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._is_open.wait()
                sink.write(data)
        except ConnectionError:
            pass
        finally:
            if self._is_open.is_set():
                sink.close()
            else:
                sink.transport.abort()


@pytest.fixture(scope="session")
def relay_class() -> type[Relay]:
    return Relay


@pytest_asyncio.fixture
async def relay(serve_engine: object) -> AsyncIterator[Callable[..., Awaitable[Relay]]]:
    relays: list[Relay] = []

    async def relay(record: EngineRecord) -> Relay:
        relays.append(Relay(record))
        await relays[-1].start()
        return relays[-1]

    yield relay
    for made in relays:
        await made.close()
