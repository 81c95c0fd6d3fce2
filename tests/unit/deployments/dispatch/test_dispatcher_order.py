"""Who goes next, under any order of events: nobody starves, turns hold, and indexes tell the truth.

Links have a network of one list; engines report what they hold. Hypothesis mixes the events.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.dispatch.waiting_room import PATIENCE_S
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.wire.frames import (
    Abort,
    Alive,
    Draining,
    EngineDescription,
    Output,
    Outputs,
    RankLoad,
    Rejected,
    Submit,
    Trying,
)
from qwenfleet.deployments.wire.tokens import TokenIds

STREAMS = 2
STEP_TOKENS = 50


class Deaf:
    """Metrics that nobody reads."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@dataclass
class Wire:
    """A connection into a list, with its outbox."""

    frames: list[Any] = field(default_factory=list)

    def send(self, frame: Any) -> None:
        self.frames.append(frame)

    submit = send

    def withdraw(self, number: int) -> bool:
        return False


@dataclass(eq=False)
class Engine:
    """The far end of a link: what it was sent, and what it still holds."""

    link: EngineLink
    wire: Wire
    seen: int = 0
    received: list[int] = field(default_factory=list)
    held: dict[int, int] = field(default_factory=dict)
    """Tokens without an answer, by attempt."""
    is_lost: bool = False

    def read(self) -> None:
        for frame in self.wire.frames[self.seen :]:
            if isinstance(frame, Submit):
                self.received.append(frame.number)
                tokens = len(frame.prompt_token_ids) + len(frame.output_token_ids)
                self.held[frame.number] = tokens
            elif isinstance(frame, Abort):
                for key in frame.wire_ids:
                    self.held.pop(key, None)
        self.seen = len(self.wire.frames)

    def load(self) -> list[RankLoad]:
        running = min(STREAMS, len(self.held))
        waiting = len(self.held) - running
        return [
            RankLoad(
                running=running, waiting=waiting, queued_prefill_tokens=sum(self.held.values())
            )
        ]


class Gateway(RuleBasedStateMachine):
    engines = Bundle("engines")

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.fleet: list[Engine] = []
        self.count = 0
        self.sent: list[tuple[Flight, bool]] = []
        """Flights given to an engine since the last event, and whether another one had them."""
        self.waited: set[Flight] = set()
        """Those that waited without an engine before the last event."""
        self.dispatcher = Dispatcher(
            "coder",
            gateway="gw",
            wire=WireConfig(),
            retry_after_s=1,
            metrics=Deaf(),  # type: ignore[arg-type]
            clock=lambda: self.now,
            rng=random.Random(0),
        )
        self.dispatcher.attach(self)
        self.room = self.dispatcher._waiting
        given = self.dispatcher._send

        def send(flight: Flight, target: Any) -> None:
            self.sent.append((flight, flight.link is not None))
            given(flight, target)

        self.dispatcher._send = send  # type: ignore[method-assign]

    # What the dispatcher calls.

    def deliver(self, outputs: Any, shift_s: float, now: float) -> None: ...

    def fail(self, flight: Flight, error: Any) -> None: ...

    def limit(self, max_model_len: int) -> None: ...

    # Engines.

    @initialize(target=engines)
    def begin_with_one(self) -> Engine:
        return self.connect(100)

    @rule(target=engines, limit=st.sampled_from([100, 100, 200]))
    def new_engine(self, limit: int) -> Engine:
        return self.connect(limit)

    def connect(self, limit: int) -> Engine:
        name = f"e{len(self.fleet)}"
        record = EngineRecord(name, "coder", "node", 1, "ready", host="h", port=1, secret="s")
        link = EngineLink(
            record,
            gateway="gw",
            wire=WireConfig(),
            events=self.dispatcher,
            clock=lambda: self.now,
        )
        wire = Wire()
        link._connection = link._outbox = wire  # type: ignore[assignment]
        link.description = EngineDescription(
            limit, max_num_seqs=STREAMS, max_num_batched_tokens=STEP_TOKENS
        )
        link._load = [RankLoad()]
        self.dispatcher._roster._links[name] = link
        self.fleet.append(Engine(link, wire))
        self.begin()
        self.dispatcher.on_news(link)
        self.end()
        return self.fleet[-1]

    @rule(
        engine=engines,
        loss=st.sampled_from([Loss.RESET, Loss.RESET, Loss.CORE_DIED, Loss.DRAINED]),
        is_kept=st.integers(0, 2),
    )
    def lose(self, engine: Engine, loss: Loss, is_kept: int) -> None:
        if not engine.is_lost and not is_kept:
            engine.is_lost = True
            engine.held.clear()
            engine.link._connection = None
            self.begin()
            self.dispatcher.on_lost(engine.link, loss, "lost")
            self.end()

    @rule(engine=engines, is_kept=st.integers(0, 2))
    def drain(self, engine: Engine, is_kept: int) -> None:
        if not is_kept:
            self.give(engine, Draining("scaled down"))

    @rule(engine=engines, condition=st.sampled_from(["steady", "steady", "slow", "frozen"]))
    def heartbeat(self, engine: Engine, condition: str) -> None:
        self.give(engine, Alive(load=engine.load(), received=engine.received, condition=condition))

    @rule(engine=engines, n=st.integers(0, 9), ends=st.booleans(), is_aborted=st.booleans())
    def step(self, engine: Engine, n: int, ends: bool, is_aborted: bool) -> None:
        outputs = []
        if engine.held:
            key = list(engine.held)[n % len(engine.held)]
            engine.held[key] = 0
            outputs = [Output(key, [] if is_aborted else [n], 2 if is_aborted else None)]
            if ends and not is_aborted:
                outputs = [Output(key, [n], 0)]
            if ends or is_aborted:
                del engine.held[key]
        self.give(engine, Outputs(outputs, load=engine.load(), received=engine.received))

    @rule(engine=engines, n=st.integers(0, 9), is_final=st.booleans())
    def reject(self, engine: Engine, n: int, is_final: bool) -> None:
        if engine.held:
            key = list(engine.held)[n % len(engine.held)]
            del engine.held[key]
            self.give(engine, Rejected(key, "no", is_final=is_final))

    @rule(engine=engines, n=st.integers(0, 9))
    def put_on_trial(self, engine: Engine, n: int) -> None:
        if engine.held:
            self.give(engine, Trying(list(engine.held)[n % len(engine.held)]))

    # Requests.

    @rule(numbers=st.lists(st.integers(0, 179), min_size=1, max_size=6))
    def ask(self, numbers: list[int]) -> None:
        for number in numbers:
            self.count += 1
            prompt = range(1 + number % 60 + 90 * (number > 150))
            self.begin()
            self.dispatcher.add(
                Flight(f"r{self.count}", TokenIds(prompt), b"", None, number % 3, None, None)
            )
            self.end()

    @rule(n=st.integers(0, 9))
    def abort(self, n: int) -> None:
        names = list(self.dispatcher._flights)
        if names:
            self.begin()
            self.dispatcher.abort([names[n % len(names)]])
            self.end()

    @rule(seconds=st.sampled_from([0.1, 0.4, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # Events.

    def give(self, engine: Engine, frame: Any) -> None:
        if engine.is_lost:
            return
        self.begin()
        engine.link._take(frame)
        self.end()
        # An engine's frame finds everyone that a look at all engines would find.
        self.begin()
        self.dispatcher._dispatch()
        assert not self.sent, "a request that could go was not sent"
        for flight in self.room._waiting:
            is_overdue = self.now >= flight.parked_at + PATIENCE_S
            assert not (is_overdue and self.has_engine(flight)), "a request starves"
        for flight in self.room._docket:
            tried = [other for other in self.dispatcher._owners if other.suspicion.is_suspect]
            assert tried or not self.has_engine(flight), "no suspect is on trial, and one waits"

    def begin(self) -> None:
        self.sent.clear()
        self.waited = {flight for flight in self.room._waiting if self.has_engine(flight)}

    def end(self) -> None:
        for engine in self.fleet:
            if not engine.is_lost:
                engine.read()
        self.check_order()

    def has_engine(self, flight: Flight) -> bool:
        capacity = self.dispatcher._capacity
        return bool(capacity.usable(capacity.size(flight.length_tokens)))

    def check_order(self) -> None:
        size = self.dispatcher._capacity.size
        left = [f for f in self.waited if f in self.room._waiting and self.has_engine(f)]
        for flight, had_engine in self.sent:
            if had_engine:
                assert not left, "it went before a request without an engine"
            elif not flight.suspicion.is_suspect:
                for other in left:
                    is_shorter = size(other.length_tokens) <= size(flight.length_tokens)
                    assert not (is_shorter and other.turn < flight.turn), "it overtook"

    @invariant()
    def indexes_equal_a_recount(self) -> None:
        flights = set(self.dispatcher._flights.values())
        owners = self.dispatcher._owners
        assert set(owners) == {flight for flight in flights if flight.link is not None}
        for engine in self.fleet:
            owned = [flight for flight in flights if flight.link is engine.link]
            assert set(owners.of(engine.link)) == set(owned)
            assert all(owners.get(engine.link, flight.key) is flight for flight in owned)
            assert owners.has_suspect(engine.link) == any(f.suspicion.is_suspect for f in owned)
            if not engine.is_lost:
                assert set(engine.held) == {flight.key for flight in owned}
        parked = {flight for flight in flights if flight.link is None}
        leaving = {flight for flight in flights if flight.link and flight.link.is_leaving}
        suspects = {flight for flight in flights if flight.suspicion.is_suspect}
        assert set(self.room._waiting) == parked - suspects
        assert set(self.room._docket) == parked & suspects
        assert set(self.room._leaving) == leaving - suspects
        assert set(self.room._retrials) == leaving & suspects
        assert self.dispatcher.num_moving == len(parked | leaving)

    @invariant()
    def lines_are_in_order(self) -> None:
        for line in (self.room._waiting, self.room._docket, self.room._leaving):
            queues = line._queues
            assert {
                flight: size for size, queue in queues.items() for _, flight in queue._order
            } == line._sizes
            for queue in queues.values():
                assert queue._order == sorted(queue._order)
                assert all(turn == flight.turn for turn, flight in queue._order)

    @invariant()
    def targets_are_those_of_the_links(self) -> None:
        for link, targets in self.dispatcher._capacity._targets.items():
            assert targets == link.targets()


@pytest.mark.timeout(300)  # 80 examples took 6 s of CPU
class TestRequestsWaitTheirTurn(Gateway.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=80, stateful_step_count=40, derandomize=True, deadline=None)
