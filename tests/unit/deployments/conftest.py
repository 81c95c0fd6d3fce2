"""Fixtures: real engine hosts and connections on loopback, and stand-ins for the other ends.

The test folders are not packages, so tests use fixtures and import nothing from here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from blockbuster import blockbuster_ctx

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.config.model import ModelConfig, ScriptConfig
from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.engine_host.core import CoreDead, CoreStep
from qwenfleet.deployments.engine_host.host import EngineHost
from qwenfleet.deployments.engine_host.scripted_core import ScriptedCore
from qwenfleet.deployments.ingress.answers import Family
from qwenfleet.deployments.ingress.exchange import Exchange
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.telemetry.spans import Spans
from qwenfleet.deployments.telemetry.tracing import NO_SPANS, NoSpans
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import (
    Outputs,
    Rejected,
    Submit,
    Trying,
    Welcome,
)
from tests.unit.deployments.wire_ends import PATIENCE_S, SECRET, Impostor, Peer


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> Iterator[None]:
    with blockbuster_ctx(["qwenfleet"]):
        yield


class Gate:
    """A core's `sleep`: each step waits until the test releases it."""

    def __init__(self) -> None:
        self._steps = asyncio.Semaphore(0)
        self.is_open = False
        self.is_blown = False

    async def __call__(self, _: float) -> None:
        if not self.is_open:
            await self._steps.acquire()
        if self.is_blown:
            raise CoreDead("the fuse blew")
        if self.is_open:
            await asyncio.sleep(0)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._steps.release()

    def open(self) -> None:
        self.is_open = True
        self.step()

    def close(self) -> None:
        self.is_open = False
        self._steps = asyncio.Semaphore(0)

    def blow(self) -> None:
        """Make the core die in its current or next step."""
        self.is_blown = True
        self.step()


@pytest_asyncio.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture
def new_gate() -> type[Gate]:
    return Gate


class ObservedCore(ScriptedCore):
    """A scripted core that exposes its requests."""

    def __init__(self, model: ModelConfig, **keywords: Any) -> None:
        super().__init__(model, **keywords)
        self.running: dict[str, Submit] = {}
        """By id in the core."""
        self.submits: list[Submit] = []

    @property
    def active(self) -> set[int]:
        """Numbers of the attempts that it runs."""
        return {submit.number for submit in self.running.values()}

    @property
    def names(self) -> set[str]:
        """Its requests and their attempts, as in "cmpl-1.0"."""
        return {f"{submit.request_id}.{submit.attempt}" for submit in self.running.values()}

    async def add(self, wire_id: str, submit: Submit) -> None:
        await super().add(wire_id, submit)
        self.running[wire_id] = submit
        self.submits.append(submit)

    async def abort(self, wire_ids: list[str]) -> None:
        await super().abort(wire_ids)
        for wire_id in wire_ids:
            self.running.pop(wire_id, None)

    async def next_step(self) -> CoreStep:
        step = await super().next_step()
        for output in step.outputs:
            if output.finish_reason is not None:
                self.running.pop(output.wire_id, None)
        return step


def scripted_model(**script: Any) -> ModelConfig:
    defaults: dict[str, Any] = {"step_s": 0.001, "tokens": (10, 11, 12, 13, 14), "num_tokens": 5}
    return ModelConfig(id="coder", engine="scripted", script=ScriptConfig(**(defaults | script)))


class Cores:
    """Makes observed cores; a test can subclass it to change `Core` and `model`."""

    Core = ObservedCore

    def __call__(
        self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, **script: Any
    ) -> ObservedCore:
        return ObservedCore(scripted_model(**script), sleep=sleep)

    def model(self, **script: Any) -> ModelConfig:
        return scripted_model(**script)


@pytest.fixture(scope="session")
def observed_core() -> Cores:
    return Cores()


@pytest.fixture
def wire() -> WireConfig:
    return WireConfig(lease_s=30, heartbeat_s=0.02, connect_timeout_s=5)


@dataclass
class ServedEngine:
    """An engine host that listens on loopback and runs."""

    core: ScriptedCore
    host: EngineHost
    record: EngineRecord
    running: asyncio.Task[None]

    async def kill(self) -> None:
        """Act as after SIGKILL: the process ends and its connections reset."""
        self.running.cancel()
        await asyncio.wait({self.running})
        self.host._port.close()
        async with asyncio.timeout(PATIENCE_S):
            while self.host._sessions:
                for session in self.host._sessions.values():
                    session.connection.abort()
                await asyncio.sleep(0.002)  # and whoever is still in its greeting


async def start_engine(
    *,
    wire: WireConfig,
    engine: str = "engine-1",
    core: ScriptedCore | None = None,
    clock: Callable[[], float] = time.monotonic,
    limits: dict[str, int] | None = None,
    spans: Spans | NoSpans = NO_SPANS,
    **script: Any,
) -> ServedEngine:
    """Start an engine. `limits` go into its description, other keywords into its script."""
    description = await ScriptedCore(scripted_model()).start()
    core = core or ObservedCore(scripted_model(**script))
    host = EngineHost(
        core,
        engine=engine,
        model="coder",
        secret=SECRET,
        description=msgspec.structs.replace(description, **(limits or {})),
        wire=wire,
        clock=clock,
        spans=spans,
    )
    address, port = await host.listen("127.0.0.1")
    record = EngineRecord(
        engine, "coder", "node-1", os.getpid(), "ready", host=address, port=port, secret=SECRET
    )
    return ServedEngine(core, host, record, asyncio.create_task(host.run()))


@pytest.fixture(scope="session", name="start_engine")
def _start_engine() -> Callable[..., Awaitable[ServedEngine]]:
    return start_engine


@pytest_asyncio.fixture
async def serve_engine(wire: WireConfig) -> AsyncIterator[Callable[..., Awaitable[ServedEngine]]]:
    """Return a function that starts engines, as in `await serve_engine(num_tokens=3)`; they end
    with the test."""
    engines: list[ServedEngine] = []

    async def serve(*, wire: WireConfig = wire, **keywords: Any) -> ServedEngine:
        engines.append(await start_engine(wire=wire, **keywords))
        return engines[-1]

    yield serve
    for served in engines:
        await served.kill()


@pytest_asyncio.fixture
async def dial(
    serve_engine: object,
) -> AsyncIterator[Callable[..., Awaitable[Peer]]]:
    """Return a function that connects and, unless `hello` is None, sends Hello."""
    peers: list[Peer] = []

    async def dial(
        record: EngineRecord,
        gateway: str = "gw-a",
        *,
        secret: str = SECRET,
        greets: bool = True,
        socket: Any = None,
        **hello: Any,
    ) -> Peer:
        if socket is not None:
            await asyncio.get_running_loop().sock_connect(socket, (record.host, record.port))
        where = (record.host, record.port) if socket is None else ()
        reader, writer = await asyncio.open_connection(*where, sock=socket)
        peer = Peer(gateway, Connection(reader, writer))
        peers.append(peer)
        if greets:
            assert isinstance(await peer.greet(secret, **hello), Welcome)
        return peer

    yield dial
    for peer in peers:
        peer.connection.close()


PATIENT = WireConfig(lease_s=30, heartbeat_s=0.02, connect_timeout_s=30)


class Events:
    """Records the events that a dispatcher receives."""

    def __init__(self) -> None:
        self.news = 0
        self.outputs: list[Outputs] = []
        self.tried: list[Trying] = []
        self.rejected: list[Rejected] = []
        self.losses: list[tuple[Loss, str]] = []

    def on_news(self, link: EngineLink) -> None:
        assert link.is_open
        self.news += 1

    def on_outputs(self, link: EngineLink, frame: Outputs) -> None:
        self.outputs.append(frame)

    def on_trying(self, link: EngineLink, frame: Trying) -> None:
        self.tried.append(frame)

    def on_rejected(self, link: EngineLink, frame: Rejected) -> None:
        self.rejected.append(frame)

    def on_lost(self, link: EngineLink, loss: Loss, reason: str) -> None:
        assert not link.is_open
        self.losses.append((loss, reason))


@pytest.fixture
def events() -> Events:
    return Events()


@pytest_asyncio.fixture
async def connect(events: Events) -> AsyncIterator[Callable[..., Any]]:
    tasks: list[asyncio.Task[None]] = []

    def connect(
        record: EngineRecord, wire: WireConfig = PATIENT
    ) -> tuple[EngineLink, asyncio.Task[None]]:
        link = EngineLink(record, gateway="gw-a", wire=wire, events=events, clock=time.monotonic)
        tasks.append(asyncio.create_task(link.run()))
        return link, tasks[-1]

    yield connect
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest_asyncio.fixture
async def impostor() -> AsyncIterator[
    Callable[[Callable[[Connection], Awaitable[None]]], Awaitable[EngineRecord]]
]:
    """Return a function that starts a fake host: it greets, runs the test's code, and closes the
    connection."""
    servers: list[asyncio.Server] = []

    async def impostor(behave: Callable[[Connection], Awaitable[None]]) -> EngineRecord:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = Impostor(reader, writer)
            try:
                await connection.greet("s")
                await behave(connection)
            except ConnectionError:
                pass
            finally:
                connection.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers.append(server)
        host, port = server.sockets[0].getsockname()[:2]
        return EngineRecord(
            "engine-1", "coder", "node-1", os.getpid(), "ready", host=host, port=port, secret="s"
        )

    yield impostor
    for server in servers:
        server.close()


@pytest.fixture
def new_exchange(metrics: Any) -> Callable[..., Exchange]:
    def new(**fields: Any) -> Exchange:
        settings: dict[str, Any] = {"model": "coder", "family": Family.OPENAI, "metrics": metrics}
        return Exchange(**(settings | {"timeout_s": 30.0, "keep_alive_s": 30.0} | fields))

    return new
