"""Cost of dispatch: the CPU time of one frame from an engine, while many requests wait or move."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.config.slo import SloConfig
from qwenfleet.cluster.errors import BenchmarkError, FleetError
from qwenfleet.cluster.labels import EngineState, Loss
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.engine_host.host import EngineHost
from qwenfleet.deployments.engine_host.scripted_core import ScriptedCore
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics
from qwenfleet.deployments.wire.frames import EngineDescription, Output, Outputs
from qwenfleet.deployments.wire.tokens import TokenIds

MODEL: Final = "coder"
ENGINES: Final = 64
REQUESTS: Final = 1_000
FRAMES: Final = 2_000
START_S: Final = 60.0
PROMPT: Final = tuple(range(1_000))
STREAMS: Final = 4
"""Streams that an engine runs at a time: few, so that all engines are full."""


@dataclass(frozen=True)
class FrameCost:
    """CPU seconds of a frame while requests are in one state: the median, and what 99 of 100
    frames stay below."""

    state: str
    requests: int
    median_s: float
    p99_s: float


class _Watched(Dispatcher):
    """Knows its links by their events."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(MODEL, **keywords)
        self.links: dict[str, EngineLink] = {}

    def on_news(self, link: EngineLink) -> None:
        self.links[link.engine] = link
        super().on_news(link)


class _Nobody:
    """Takes the outputs of requests without a client."""

    def deliver(
        self, outputs: list[tuple[Flight, Output, bool]], shift_s: float, now: float
    ) -> None:
        pass

    def fail(self, flight: Flight, error: FleetError) -> None:
        raise BenchmarkError(f"{flight.request_id} failed: {error}", "Report this as a bug.")

    def limit(self, max_model_len: int) -> None:
        pass


def measure(*, engines: int = ENGINES, requests: int = REQUESTS) -> str:
    """Return a table for the docs. Raises BenchmarkError if the engines do not connect."""
    logging.getLogger("qwenfleet").setLevel(logging.ERROR)  # each lost engine is a warning
    return render(engines, asyncio.run(_measure(engines, requests)))


def render(engines: int, costs: list[FrameCost]) -> str:
    lines = [
        f"| requests, {engines} engines | state | CPU per frame, us: p50 | p99 |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {cost.requests} | {cost.state} | {cost.median_s * 1e6:.1f} | {cost.p99_s * 1e6:.0f} |"
        for cost in costs
    ]
    return "\n".join(lines)


async def _measure(engines: int, requests: int) -> list[FrameCost]:
    states: dict[str, Callable[[_Watched, int], None]] = {
        "on their engines": _run,
        "suspects of a dead core": _suspect,
        "without an engine, and none has room": _wait,
        "on a draining engine, and none has room": _leave,
    }
    return [await _cost(name, reach, engines, requests) for name, reach in states.items()]


async def _cost(
    state: str, reach: Callable[[_Watched, int], None], engines: int, requests: int
) -> FrameCost:
    """Bring a fresh dispatcher into a state and time frames of engines that have nothing new."""
    began = time.monotonic()
    dispatcher = _Watched(
        gateway="benchmark",
        wire=WireConfig(lease_s=3600, heartbeat_s=600),
        retry_after_s=1,
        metrics=GatewayMetrics("benchmark", {MODEL: SloConfig()}),
        clock=lambda: began,  # so that no request waits for too long
        rng=random.Random(0),
    )
    dispatcher.attach(_Nobody())
    hosts, running = await _start(dispatcher, engines)
    try:
        reach(dispatcher, requests)
        return _time(state, dispatcher, requests)
    finally:
        dispatcher.close()
        await asyncio.gather(*(host.drain("the benchmark is over", 1.0) for host in hosts))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _start(
    dispatcher: _Watched, engines: int
) -> tuple[list[EngineHost], list[asyncio.Task[None]]]:
    """Connect the dispatcher to engines whose cores never step; returns these and their tasks."""
    model = ModelConfig(id=MODEL, engine="scripted")
    description = EngineDescription(2**20, max_num_seqs=STREAMS, max_num_batched_tokens=8192)
    hosts: list[EngineHost] = []
    records: list[EngineRecord] = []
    running: list[asyncio.Task[None]] = []
    for index in range(engines):
        host = EngineHost(
            ScriptedCore(model, sleep=_never),
            engine=f"engine-{index}",
            model=MODEL,
            secret="benchmark",
            description=description,
            wire=WireConfig(lease_s=3600, heartbeat_s=600),
        )
        address, port = await host.listen("127.0.0.1")
        records.append(
            EngineRecord(
                f"engine-{index}",
                MODEL,
                "this node",
                0,
                EngineState.READY,
                host=address,
                port=port,
                secret="benchmark",
            )
        )
        hosts.append(host)
        running.append(asyncio.create_task(host.run()))
    dispatcher.update(records)
    deadline = time.monotonic() + START_S
    while dispatcher.num_engines < engines:
        if time.monotonic() > deadline:
            raise BenchmarkError(
                f"{dispatcher.num_engines} of {engines} engines connected in {START_S:.0f} s",
                "Run it on a machine with less load.",
            )
        await asyncio.sleep(0.01)
    return hosts, running


async def _never(_: float) -> None:
    await asyncio.Event().wait()


def _time(state: str, dispatcher: _Watched, requests: int) -> FrameCost:
    spent = []
    frame = Outputs([])
    links = itertools.cycle(dispatcher.links.values())
    for _, link in zip(range(FRAMES), links, strict=False):
        began = time.thread_time()
        dispatcher.on_outputs(link, frame)
        dispatcher.on_news(link)
        spent.append((time.thread_time() - began) / 2)
    return FrameCost(
        state, requests, statistics.median(spent), statistics.quantiles(spent, n=100)[-1]
    )


# States.


def _ask(dispatcher: _Watched, name: str, number: int) -> None:
    for index in range(number):
        request_id = f"{name}-{index}"
        dispatcher.add(Flight(request_id, TokenIds(PROMPT), b"", None, 0, None, None))


def _run(dispatcher: _Watched, requests: int) -> None:
    _ask(dispatcher, "request", requests)


def _suspect(dispatcher: _Watched, requests: int) -> None:
    """Let a core die that had all requests."""
    with _only_one(dispatcher) as link:
        _ask(dispatcher, "suspect", requests)
    dispatcher.links.pop(link.engine)
    dispatcher.on_lost(link, Loss.CORE_DIED, "the benchmark lost it")


def _wait(dispatcher: _Watched, requests: int) -> None:
    """Lose an engine that had all requests while the others are full."""
    link = _fill_others(dispatcher, requests)
    dispatcher.links.pop(link.engine)
    dispatcher.on_lost(link, Loss.RESET, "the benchmark lost it")


def _leave(dispatcher: _Watched, requests: int) -> None:
    """Drain an engine that has all requests while the others are full."""
    link = _fill_others(dispatcher, requests)
    link.is_draining = True
    dispatcher.on_news(link)


def _fill_others(dispatcher: _Watched, requests: int) -> EngineLink:
    with _only_one(dispatcher) as link:
        _ask(dispatcher, "request", requests)
    link.is_draining = True
    dispatcher.on_news(link)
    for number in range(STREAMS):
        _ask(dispatcher, f"busy-{number}", len(dispatcher.links) - 1)
    link.is_draining = False
    dispatcher.on_news(link)
    return link


@contextmanager
def _only_one(dispatcher: _Watched) -> Iterator[EngineLink]:
    """Let one engine take all requests."""
    first, *others = dispatcher.links.values()
    for link in others:
        link.is_draining = True
        dispatcher.on_news(link)
    yield first
    for link in others:
        link.is_draining = False
        dispatcher.on_news(link)
