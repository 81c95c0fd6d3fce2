"""Real engine hosts and connections on loopback, and hand-written ends for what is not under test.

Tests get these through fixtures: the test folders are no packages, so nothing is imported from
here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from blockbuster import blockbuster_ctx

from qwenfleet.cluster.config import ModelConfig, ScriptConfig, WireConfig
from qwenfleet.deployments.connection import Connection
from qwenfleet.deployments.core import CoreStep
from qwenfleet.deployments.engine_host import EngineHost
from qwenfleet.deployments.registry import EngineRecord
from qwenfleet.deployments.scripted_engine import ScriptedCore
from qwenfleet.deployments.transport import (
    AnyFrame,
    Hello,
    Outputs,
    Submit,
    Welcome,
    wire_id,
)

SECRET = "open sesame"
PATIENCE_S = 10.0
"""Far beyond what any wait here needs: a machine may be busy."""

F = TypeVar("F")


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> Iterator[None]:
    with blockbuster_ctx(["qwenfleet"]):
        yield


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def eventually(is_true: Callable[[], object]) -> None:
    """Wait for a state that no event announces."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[[Callable[[], object]], Awaitable[None]]:
    return eventually


class RecordingMetrics:
    """GatewayMetrics' methods; keeps what it is told."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.durations: list[float] = []
        self.ttfts: list[float] = []
        self.gaps: list[float] = []
        self.counted: list[dict[str, int]] = []
        self.losses: list[str] = []

    def request_ended(self, model: str, outcome: str) -> None:
        self.ended.append((model, outcome))

    def completed(self, model: str, duration_s: float) -> None:
        self.durations.append(duration_s)

    def first_token(self, model: str, ttft_s: float) -> None:
        self.ttfts.append(ttft_s)

    def next_token(self, model: str, gap_s: float) -> None:
        self.gaps.append(gap_s)

    def tokens(self, model: str, *, prompt: int, cached: int, output: int) -> None:
        self.counted.append({"prompt": prompt, "cached": cached, "output": output})

    def engine_lost(self, model: str) -> None:
        self.losses.append(model)


@pytest.fixture
def metrics() -> RecordingMetrics:
    return RecordingMetrics()


class Gate:
    """A core's `sleep`: each step waits until the test lets it happen."""

    def __init__(self) -> None:
        self._steps = asyncio.Semaphore(0)
        self.is_open = False

    async def __call__(self, _: float) -> None:
        if not self.is_open:
            await self._steps.acquire()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._steps.release()

    def open(self) -> None:
        self.is_open = True
        self.step()


@pytest_asyncio.fixture
async def gate() -> Gate:
    return Gate()


class ObservedCore(ScriptedCore):
    """A scripted core that shows what it works on."""

    def __init__(self, model: ModelConfig, **keywords: Any) -> None:
        super().__init__(model, **keywords)
        self.active: set[str] = set()
        self.submits: list[Submit] = []

    async def add(self, wire_id: str, submit: Submit) -> None:
        await super().add(wire_id, submit)
        self.active.add(wire_id)
        self.submits.append(submit)

    async def abort(self, wire_ids: list[str]) -> None:
        await super().abort(wire_ids)
        self.active -= set(wire_ids)

    async def next_step(self) -> CoreStep:
        step = await super().next_step()
        self.active -= {o.wire_id for o in step.outputs if o.finish_reason is not None}
        return step


def scripted_model(**script: Any) -> ModelConfig:
    defaults: dict[str, Any] = {"step_s": 0.001, "tokens": (10, 11, 12, 13, 14), "num_tokens": 5}
    return ModelConfig(id="coder", engine="scripted", script=ScriptConfig(**(defaults | script)))


class Cores:
    """Makes observed cores; `Core` and `model` are for a subclass of a test's own."""

    Core = ObservedCore

    def __call__(
        self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, **script: Any
    ) -> ObservedCore:
        return ObservedCore(scripted_model(**script), sleep=sleep)

    def model(self, **script: Any) -> ModelConfig:
        return scripted_model(**script)


@pytest.fixture
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
        """What a SIGKILL leaves: no process, and connections that reset."""
        self.running.cancel()
        await asyncio.wait({self.running})
        await self.host.drain("killed", 0.0)


@pytest_asyncio.fixture
async def serve_engine(wire: WireConfig) -> AsyncIterator[Callable[..., Awaitable[ServedEngine]]]:
    """Starts engines: `await serve_engine(num_tokens=3)`; other keywords are the script's."""
    engines: list[ServedEngine] = []

    async def serve(
        *,
        engine: str = "engine-1",
        core: ScriptedCore | None = None,
        wire: WireConfig = wire,
        clock: Callable[[], float] = time.monotonic,
        **script: Any,
    ) -> ServedEngine:
        core = core or ObservedCore(scripted_model(**script))
        description = await ScriptedCore(scripted_model()).start()
        host = EngineHost(
            core,
            engine=engine,
            model="coder",
            secret=SECRET,
            description=description,
            wire=wire,
            clock=clock,
        )
        address, port = await host.listen("127.0.0.1")
        record = EngineRecord(
            engine, "coder", "node-1", os.getpid(), "ready", host=address, port=port, secret=SECRET
        )
        served = ServedEngine(core, host, record, asyncio.create_task(host.run()))
        engines.append(served)
        return served

    yield serve
    for served in engines:
        await served.kill()


@dataclass
class Peer:
    """A gateway's end of the wire, by hand."""

    gateway: str
    connection: Connection
    seen: list[AnyFrame] = field(default_factory=list)

    async def receive(self, kind: type[F]) -> F:
        """The next frame of this kind; what comes before it goes to `seen`."""
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
        **fields: Any,
    ) -> str:
        self.connection.send(
            Submit(request_id, attempt, prompt_token_ids=list(prompt), request=b"", **fields)
        )
        return wire_id(self.gateway, request_id, attempt)

    async def tokens(self, key: str, count: int | None = None) -> list[int]:
        """Tokens of one attempt, to its end or to `count` of them."""
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


@pytest_asyncio.fixture
async def dial(
    serve_engine: object,
) -> AsyncIterator[Callable[..., Awaitable[Peer]]]:
    """Connects by hand; greets unless `hello` is None."""
    peers: list[Peer] = []

    async def dial(
        record: EngineRecord,
        gateway: str = "gw-a",
        *,
        secret: str = SECRET,
        greets: bool = True,
        **hello: Any,
    ) -> Peer:
        reader, writer = await asyncio.open_connection(record.host, record.port)
        peer = Peer(gateway, Connection(reader, writer))
        peers.append(peer)
        if greets:
            peer.connection.send(Hello(gateway, secret, **hello))
            assert isinstance(await peer.connection.receive(), Welcome)
        return peer

    yield dial
    for peer in peers:
        peer.connection.close()


class Client:
    """An HTTP client as an ASGI application sees it: what it receives, and when it hangs up."""

    def __init__(self, *chunks: bytes) -> None:
        self.messages: list[dict[str, Any]] = []
        self.hung_up = asyncio.Event()
        self.has_news = asyncio.Event()
        self._chunks = [
            {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
            for index, chunk in enumerate(chunks)
        ]

    async def receive(self) -> dict[str, Any]:
        if self._chunks:
            return self._chunks.pop(0)
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        assert not self.is_complete, f"{message} comes after the response's end"
        self.messages.append(dict(message))
        self.has_news.set()

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.messages) < count:
                self.has_news.clear()
                await self.has_news.wait()

    @property
    def is_complete(self) -> bool:
        last = self.messages[-1] if self.messages else {"type": ""}
        return last["type"] == "http.response.body" and not last.get("more_body", False)

    @property
    def status(self) -> int:
        assert self.messages[0]["type"] == "http.response.start"
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def pieces(self) -> list[bytes]:
        return [message.get("body", b"") for message in self.messages[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


@pytest.fixture
def new_client() -> type[Client]:
    return Client
