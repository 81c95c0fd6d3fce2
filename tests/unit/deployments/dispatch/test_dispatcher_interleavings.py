"""Losses in any order: each token once, one owner at a time, no request forgotten.

Real hosts, links and connections on loopback. Only time is simulated: it advances as soon as every
task waits, so that leases and frozen cores take no real time.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.dispatch.suspicion import MAX_UNPROVEN
from qwenfleet.deployments.engine_host.core import CoreDead
from qwenfleet.deployments.ingress.errors import RequestKillsEngines
from qwenfleet.deployments.wire.frames import Outputs, Submit

LENGTH = 60
PLAYED = list(range(LENGTH))
STEP_S = 0.1
POLL_S = 0.5
WIRE = WireConfig(lease_s=3, heartbeat_s=0.5, connect_timeout_s=2)
LIMITS = {"max_num_seqs": 3, "max_num_batched_tokens": 64}
PATIENCE_S = 200.0
"""Simulated seconds."""


class TimePasses(selectors.SelectSelector):
    """Waits by moving the clock. Loopback delivers within the system call that sends."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            return super().select(1.0)
        events = super().select(0)
        if not events and timeout > 0:
            self.now += timeout + 1e-9
        return events


class MadeUpTime(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.passing = TimePasses()
        super().__init__(self.passing)

    def time(self) -> float:
        return self.passing.now


class Tempo:
    """A core's sleep, which may pause, or never end."""

    def __init__(self) -> None:
        self.is_blown = False
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.goes_on.wait()
        if self.is_blown:
            raise CoreDead("the core died")


class WatchedDispatcher(Dispatcher):
    """Keeps every frame that it received, so that tests can replay it."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.frames: list[tuple[EngineLink, Outputs]] = []

    def on_outputs(self, link: EngineLink, frame: Outputs) -> None:
        self.frames.append((link, frame))
        super().on_outputs(link, frame)


@dataclass(eq=False)
class Machine:
    """One engine's process, and the network in front of it."""

    engine: Any
    tempo: Tempo
    network: Any
    is_listed: bool = True
    is_dead: bool = False
    is_swallowed: bool = False
    task: asyncio.Task[None] | None = None


@dataclass
class Parts:
    """Fixtures of the test folders' conftest files."""

    start_engine: Any
    cores: Any
    relay: Any
    desk: Any
    metrics: Any


@pytest.fixture(scope="session")
def parts(
    start_engine: Any, observed_core: Any, relay_class: Any, desk_class: Any, new_metrics: Any
) -> Parts:
    return Parts(start_engine, observed_core, relay_class, desk_class, new_metrics)


@dataclass
class Fleet:
    """Engines that come and go, gateways, and what was done to them."""

    parts: Parts
    has_networks: bool
    machines: list[Machine] = field(default_factory=list)
    desks: list[Any] = field(default_factory=list)
    aborted: set[Any] = field(default_factory=set)
    deaths: int = 0
    harm: int = 0
    moves: int = 0
    """How often a request may have moved for a good reason."""
    names: Any = field(default_factory=itertools.count)

    @property
    def streams(self) -> list[Any]:
        return [stream for desk in self.desks for stream in desk.streams.values()]

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    async def start(self, _: int = 0) -> None:
        tempo = Tempo()
        script = self.parts.cores.model(tokens=tuple(PLAYED), num_tokens=LENGTH, step_s=STEP_S)
        engine = await self.parts.start_engine(
            engine=f"e{len(self.machines)}",
            core=self.parts.cores.Core(script, sleep=tempo),
            wire=WIRE,
            clock=self.clock,
            limits=LIMITS,
        )
        # Room for all: a full connection goes on by the kernel's own clock, which does not jump.
        network = self.parts.relay(engine.record, room_bytes=2**20)
        if self.has_networks:
            await network.start()
        machine = Machine(engine, tempo, network)
        machine.task = asyncio.create_task(self._watch(machine))
        self.machines.append(machine)

    async def _watch(self, machine: Machine) -> None:
        """End the process when its core ends."""
        await asyncio.wait({machine.engine.running})
        await self._end(machine)

    async def _end(self, machine: Machine) -> None:
        machine.is_listed, machine.is_dead = False, True
        await machine.engine.kill()

    async def poll(self, desk: Any) -> None:
        """Give a gateway the registry's records."""
        while True:
            desk.dispatcher.update([m.network.record for m in self.machines if m.is_listed])
            await asyncio.sleep(POLL_S)

    # Operations. Each takes a number that selects its target.

    async def ask(self, n: int) -> None:
        prompt = range(n, n + 1 + n % 40)
        self.desks[n % len(self.desks)].ask(f"r{next(self.names)}", prompt, priority=n % 3)

    async def abort(self, n: int) -> None:
        desk = self.desks[n % len(self.desks)]
        if desk.streams:
            name = sorted(desk.streams)[n % len(desk.streams)]
            self.aborted.add(desk.streams[name])
            desk.dispatcher.abort([name])

    async def kill(self, n: int) -> None:
        machine = self.machines[n % len(self.machines)]
        self.harm += not machine.is_dead
        self.moves += 1
        await self._end(machine)

    async def end_core(self, n: int) -> None:
        machine = self.machines[n % len(self.machines)]
        self.deaths += not machine.tempo.is_blown
        self.harm += not machine.tempo.is_blown
        self.moves += 1
        machine.tempo.is_blown = True

    async def drain(self, n: int) -> None:
        machine = self.machines[n % len(self.machines)]
        if machine.is_listed:
            machine.is_listed = False
            self.moves += 2  # a late request is refused
            machine.task = asyncio.create_task(self._drain(machine, [0.0, 1.0, 30.0][n % 3]))

    async def _drain(self, machine: Machine, deadline_s: float) -> None:
        await machine.engine.host.drain("scaled down", deadline_s)
        await self._end(machine)

    async def freeze(self, n: int) -> None:
        self.machines[n % len(self.machines)].tempo.goes_on.clear()
        self.harm += 1
        self.moves += 2  # it may have to come back, if that is the last engine

    async def thaw(self, n: int) -> None:
        self.machines[n % len(self.machines)].tempo.goes_on.set()

    async def swallow(self, n: int) -> None:
        machine = self.machines[n % len(self.machines)]
        machine.network.swallow()
        machine.is_swallowed = True
        self.harm += 1
        self.moves += 1

    async def heal(self, n: int) -> None:
        machine = self.machines[n % len(self.machines)]
        machine.network.heal()
        machine.is_swallowed = False

    async def replay(self, n: int) -> None:
        """Let a zombie send an earlier frame again."""
        dispatcher = self.desks[n % len(self.desks)].dispatcher
        owners = {flight.key: flight.link for flight in dispatcher._owners}
        stale = [
            (link, frame)
            for link, frame in dispatcher.frames
            if all(owners.get(output.wire_id) is not link for output in frame.outputs)
        ]
        if stale:
            dispatcher.on_outputs(*stale[n % len(stale)])

    async def steal(self, n: int) -> None:
        """Let a zombie use the key that its request has on another engine."""
        dispatcher = self.desks[n % len(self.desks)].dispatcher
        if dispatcher.frames and any(dispatcher._owners):
            link, frame = dispatcher.frames[n % len(dispatcher.frames)]
            for flight in list(dispatcher._owners):
                if flight.link is not link:
                    forged = Outputs([type(frame.outputs[0])(flight.key, [666])])
                    dispatcher.on_outputs(link, forged)

    async def wait(self, n: int) -> None:
        await asyncio.sleep([0.05, 0.15, 0.7, 2.5, 6.0][n % 5])

    # Invariants.

    def check(self) -> None:
        for desk in self.desks:
            dispatcher = desk.dispatcher
            owned = {f for f in dispatcher._flights.values() if f.link is not None}
            assert set(dispatcher._owners) == owned, "each request with an owner, and no other"
            for flight in dispatcher._flights.values():
                if flight.link is None:
                    assert flight in set(dispatcher._waiting), "parked and forgotten"
                else:
                    assert flight.link.is_open, "owned by an engine that is lost"
            assert set(dispatcher._waiting) <= set(dispatcher._flights.values())
            assert desk.dispatcher.num_moving == len(set(dispatcher._waiting))
        for stream in self.streams:
            self.check_stream(stream)

    def check_stream(self, stream: Any) -> None:
        assert stream.tokens == PLAYED[: len(stream.tokens)], "each token once and in order"
        assert (stream.finish_reason is not None) == (len(stream.tokens) == LENGTH)
        assert stream.flight.attempt <= self.moves, "moved without a reason"
        if stream.error is not None:
            assert isinstance(stream.error, RequestKillsEngines)
            # Not without reason: two dead cores, or crashes in a row.
            assert self.deaths >= 2 or self.harm >= MAX_UNPROVEN
        elif not stream.is_over and stream not in self.aborted:
            (desk,) = [desk for desk in self.desks if stream in desk.streams.values()]
            assert desk.dispatcher._flights[stream.flight.request_id] is stream.flight

    async def come_to_rest(self) -> None:
        """Let all messages be read and answered: only then does time advance."""
        await asyncio.sleep(0.001)

    def active(self) -> list[tuple[str, Submit]]:
        """Attempts that living, reachable cores work on, with their ids there."""
        reachable = [m for m in self.machines if not m.is_dead and not m.is_swallowed]
        return [item for machine in reachable for item in machine.engine.core.running.items()]

    def check_cores(self) -> None:
        """At rest, cores work only on owned attempts, and never two on one request."""
        owned = {flight.key for desk in self.desks for flight in desk.dispatcher._owners}
        active = self.active()
        assert {submit.number for _, submit in active} <= owned, "work without an owner"
        requests = [(submit.request_id, key.split("@")[1]) for key, submit in active]
        assert len(requests) == len(set(requests)), "two owners"
        for desk in self.desks:
            for flight in desk.dispatcher._waiting:
                assert flight.link is None or flight.link.is_leaving, "kept from moving"

    async def settle(self) -> None:
        """Stop all faults and add a healthy engine: everything must finish."""
        for machine in self.machines:
            machine.network.heal()
            machine.is_swallowed = False
            machine.tempo.goes_on.set()
        await self.start()
        await self.come_to_rest()
        self.check_cores()
        await self.until(
            lambda: all(stream.is_over or stream in self.aborted for stream in self.streams)
        )
        await self.until(lambda: not self.active())
        self.check()
        for desk in self.desks:
            assert not desk.dispatcher._flights
            assert not desk.dispatcher._waiting
            assert desk.dispatcher.num_moving == 0
        for machine in self.machines:
            assert not machine.engine.host._attempts or machine.is_dead, "held without an owner"

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_true():  # noqa: ASYNC110
                await asyncio.sleep(0.25)

    async def close(self) -> None:
        for desk in self.desks:
            await desk.close()
        for machine in self.machines:
            machine.network.heal()
            if self.has_networks:
                await machine.network.close()
            await machine.engine.kill()
            assert machine.task is not None
            await asyncio.wait({machine.task})


async def play(
    parts: Parts, engines: int, gateways: int, operations: list[tuple[str, int]]
) -> None:
    fleet = Fleet(parts, has_networks=any(name == "swallow" for name, _ in operations))
    for _ in range(engines):
        await fleet.start()
    fleet.desks = [
        parts.desk(f"gw-{n}", WIRE, parts.metrics(), fleet.clock, WatchedDispatcher)
        for n in range(gateways)
    ]
    polls = [asyncio.create_task(fleet.poll(desk)) for desk in fleet.desks]
    try:
        await asyncio.sleep(0.1)
        for name, n in operations:
            await getattr(fleet, name)(n)
            fleet.check()
            if n % 2:  # the others meet the next operation half way
                await fleet.come_to_rest()
                fleet.check_cores()
        await fleet.settle()
        event(f"convicted: {any(stream.error for stream in fleet.streams)}")
        event(f"moved: {any(stream.flight.attempt > 0 for stream in fleet.streams)}")
    finally:
        for task in polls:
            task.cancel()
        await fleet.close()


FAULTS = ["kill", "end_core", "drain", "freeze", "swallow"]
REST = ["ask", "ask", "start", "start", "thaw", "heal", "abort", "replay", "steal"]
number = st.integers(0, 59)
turns = st.tuples(
    st.tuples(st.just("ask"), number),
    st.tuples(st.sampled_from(REST), number),
    st.tuples(st.just("wait"), number),
    st.tuples(st.sampled_from(FAULTS + REST), number),
)
operations = st.lists(turns, min_size=3, max_size=10).map(
    lambda turns: [operation for turn in turns for operation in turn]
)


@pytest.mark.timeout(300)  # 150 examples took 53 s on two cores, one of them busy
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(engines=st.integers(2, 3), gateways=st.integers(1, 2), operations=operations)
@example(2, 1, [("ask", 0), ("ask", 3), ("wait", 2), ("kill", 0), ("wait", 1), ("kill", 1)])
@example(2, 1, [("ask", 0), ("ask", 1), ("wait", 2), ("swallow", 0), ("wait", 3), ("steal", 0)])
@example(3, 2, [("ask", n) for n in range(8)] + [("wait", 2), ("end_core", 0), ("end_core", 1)])
@example(2, 2, [("ask", n) for n in range(9)] + [("wait", 2), ("drain", 2), ("wait", 2)])
@example(2, 1, [("ask", n) for n in range(5)] + [("wait", 3), ("freeze", 0), ("wait", 4)])
def test_no_interleaving_of_losses_loses_a_request_or_repeats_a_token(
    parts: Parts, engines: int, gateways: int, operations: list[tuple[str, int]]
) -> None:
    with asyncio.Runner(loop_factory=MadeUpTime) as runner:
        runner.run(play(parts, engines, gateways, operations))
