"""Cost of the wire: the CPU time of a frame, and how long a small frame waits for large ones."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.encoding import encode
from qwenfleet.deployments.wire.frames import (
    MAX_OUTPUTS_BYTES,
    Lease,
    Output,
    Outputs,
    RankLoad,
    Submit,
)
from qwenfleet.deployments.wire.tokens import TokenIds

STREAMS: Final = (1, 20, 200)
FRAMES: Final = 2_000
RUNS: Final = 7
LARGE: Final = 8
"""Attempts of 1M tokens, sent at once."""
TOKENS: Final = 1_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class FrameCost:
    """A frame of outputs: its size, and its CPU seconds at both ends, at best."""

    streams: int
    size_bytes: int
    cpu_s: float


@dataclass(frozen=True)
class Delay:
    """Seconds until a small frame arrived: alone, and sent after large ones, which took `all_s`."""

    alone_s: float
    behind_s: float
    all_s: float


def measure() -> str:
    """Return the results for the docs."""
    costs = [_on_servers_loop(_cost(streams)) for streams in STREAMS]
    return render(costs, _on_servers_loop(_delay()))


def render(costs: list[FrameCost], delay: Delay) -> str:
    lines = ["| streams in a frame of outputs | bytes | CPU of both ends, us |", "|---|---|---|"]
    lines += [f"| {cost.streams} | {cost.size_bytes} | {cost.cpu_s * 1e6:.1f} |" for cost in costs]
    return "\n".join(
        [
            *lines,
            "",
            f"A small frame arrives after {delay.alone_s * 1e3:.2f} ms, and after "
            f"{delay.behind_s * 1e3:.2f} ms if {LARGE} prompts of {TOKENS / 1e6:g}M tokens were "
            f"sent just before it, which took {delay.all_s * 1e3:.0f} ms.",
        ]
    )


def _on_servers_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop, which Ray uses too, if it is installed."""
    make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        from uvloop import new_event_loop as make_loop
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(main)


@asynccontextmanager
async def _pair() -> AsyncIterator[tuple[Connection, Connection]]:
    """Two ends of a connection on loopback."""
    accepted: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(Connection(reader, writer, MAX_OUTPUTS_BYTES))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    near = Connection(*await asyncio.open_connection(*server.sockets[0].getsockname()[:2]))
    far = await accepted
    try:
        yield near, far
    finally:
        near.abort()
        far.abort()
        server.close()


async def _cost(streams: int) -> FrameCost:
    load = [RankLoad(0, streams, 0, 100, 0.5, 9000.0, 0.02)]
    outputs = [Output(100_000 + number, [12345]) for number in range(streams)]
    frame = Outputs(outputs, load, [], 7, 1234.5)
    spent = []
    async with _pair() as (near, far):
        for _ in range(RUNS):
            began = time.process_time()
            for _ in range(FRAMES):
                near.send(frame)
                await far.receive()
            spent.append((time.process_time() - began) / FRAMES)
    return FrameCost(streams, len(encode(frame)), min(spent))


async def _delay() -> Delay:
    prompt = TokenIds(range(100_000, 100_000 + TOKENS))
    async with _pair() as (near, far):
        alone = []
        for _ in range(RUNS):
            began = time.perf_counter()
            near.send(Lease())
            await far.receive()
            alone.append(time.perf_counter() - began)
        for number in range(LARGE):
            near.send(Submit("x", 0, prompt, b"", number=number))
        began = time.perf_counter()
        near.send(Lease())
        behind_s = 0.0
        for _ in range(LARGE + 1):
            if isinstance(await far.receive(), Lease):
                behind_s = time.perf_counter() - began
    return Delay(statistics.median(alone), behind_s, time.perf_counter() - began)
