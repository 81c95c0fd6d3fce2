"""Registry: the engines and gateways of a fleet, in one small detached actor per fleet.

Requests do not depend on it. It starts empty, and every engine and gateway announces itself at
least once a second, so that it is complete a second later.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.cluster.labels import EngineState
from qwenfleet.cluster.metrics import START_FAILURES
from qwenfleet.deployments.registry import records
from qwenfleet.deployments.registry.records import (
    AnnounceEngine,
    AnnounceGateway,
    CallRefused,
    CloseNode,
    CodePackage,
    Departure,
    Done,
    DrainEngine,
    DrainOrder,
    EngineList,
    EngineRecord,
    FirstPackage,
    GatewayRecord,
    Message,
    Orders,
    Read,
    ReportFailure,
    Request,
    Snapshot,
    StartFailure,
    Withdraw,
)
from qwenfleet.deployments.telemetry.instruments import Instruments, reporting

logger = logging.getLogger(__name__)

LAPSE_S: Final = 5.0
"""An engine or gateway that is silent for this long (five missed announcements) is no longer
listed."""
AWAITED_S: Final = 600.0
"""Time for the replacement of a drained engine to announce itself. Serve starts it within seconds;
a node for it may take minutes, or the fleet has been scaled down meanwhile."""
CORES_PER_START: Final = 4
"""CPU cores per concurrent engine start: each start runs two or three vLLM imports, 9 s of CPU
each; with fewer cores, starts only slow each other down."""

R = TypeVar("R")


class Registry:
    """The actor's state. `clock` returns monotonic seconds."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        count_failures: Callable[[str, int], None] = lambda model, failures: None,
    ) -> None:
        """`count_failures` is called with a model and how many more of its engines failed to
        start."""
        self._clock = clock
        self._count_failures = count_failures
        self._models: set[str] = set()
        self._engines: dict[str, tuple[EngineRecord, float]] = {}
        self._gateways: dict[str, tuple[GatewayRecord, float]] = {}
        self._failures: deque[StartFailure] = deque(maxlen=32)
        self._departures: deque[Departure] = deque(maxlen=32)
        self._began_at = clock()
        self._drains: dict[str, DrainOrder] = {}
        self._packages: dict[str, str] = {}
        self._closed: dict[str, float] = {}
        """Nodes on which engines must not start, and until when."""
        self._awaited: list[tuple[Departure, float]] = []
        """Drained engines without a replacement, and when they left."""
        self._replaced: dict[str, Departure] = {}
        """The drained engine in whose place a starting engine starts."""

    def announce_engine(self, record: EngineRecord, node_cores: int) -> Orders:
        """List an engine and return its orders."""
        if record.model not in self._models:
            self._models.add(record.model)
            self._count_failures(record.model, 0)
        record = self._with_place(record)
        loading = [
            other
            for other, _ in self._live(self._engines).values()
            if other.is_loading and other.node == record.node and other.id != record.id
        ]
        is_closed = any(
            self._closed.get(node, 0.0) > self._clock() for node in (record.node, *record.nodes)
        )
        may_load = len(loading) < max(1, node_cores // CORES_PER_START) and not is_closed
        if record.state == EngineState.STARTING and may_load:
            record = msgspec.structs.replace(record, is_loading=True)
        if record.state == EngineState.READY:
            self._forget_failures(record.model)
        self._engines[record.id] = (record, self._clock())
        return Orders(may_load, self._drains.get(record.id), record.replaces)

    def drain(self, engine: str, order: DrainOrder) -> None:
        """Order an engine or gateway to drain; it receives the order with its next announcement."""
        self._drains[engine] = order

    def close_node(self, node: str, for_s: float) -> None:
        """Let engines start on this node only after `for_s` seconds."""
        self._closed[node] = self._clock() + for_s

    def announce_gateway(self, record: GatewayRecord) -> EngineList:
        """List a gateway; returns every engine, and its order if it has one."""
        before = self._gateways.get(record.id)
        if record.is_ready and (before is None or not before[0].is_ready):
            self._forget_failures(model="")
        self._gateways[record.id] = (record, self._clock())
        return EngineList(self.snapshot().engines, self._drains.get(record.id))

    def withdraw(self, id: str, reason: str = "", *, is_replaced: bool = False) -> None:
        """Remove an engine or gateway. `is_replaced`: an engine leaves after a drain that was
        ordered, and Serve starts another."""
        if id in self._engines:
            record, _ = self._engines.pop(id)
            departure = Departure(id, record.model, reason or record.reason, record.pool)
            self._departures.append(departure)
            before = self._replaced.pop(id, None)  # the place of one that did not start is free
            awaited = departure if is_replaced else before
            if awaited is not None:
                self._awaited.append((awaited, self._clock()))
        if self._gateways.pop(id, None) is not None:
            self._departures.append(Departure(id, "", reason))
        self._drains.pop(id, None)

    def report_failure(self, failure: StartFailure) -> None:
        self._failures.append(failure)
        if failure.model and failure.engine not in self._gateways:
            self._count_failures(failure.model, 1)
        self.withdraw(failure.engine, f"it did not start: {failure.reason}")

    def first_package(self, code: str, uri: str, missing: str = "") -> str:
        """The package in which this code was first deployed. `uri` becomes that package if there is
        none yet, or if it is `missing` now."""
        if self._packages.get(code, missing) == missing:
            self._packages[code] = uri
        return self._packages[code]

    def snapshot(self) -> Snapshot:
        heard = [(id, at) for id, (_, at) in [*self._engines.items(), *self._gateways.items()]]
        for id, at in heard:
            if self._clock() - at >= LAPSE_S:
                self.withdraw(id, f"no announcement for {LAPSE_S:.0f} s")
        return Snapshot(
            engines=tuple(record for record, _ in self._engines.values()),
            gateways=tuple(record for record, _ in self._gateways.values()),
            failures=tuple(self._failures),
            departures=tuple(self._departures),
            up_s=self._clock() - self._began_at,
            awaited=tuple(departure for departure, _ in self._still_awaited()),
        )

    def _with_place(self, record: EngineRecord) -> EngineRecord:
        """Return the record with the drained engine in whose place it starts, if there is one. Only
        an engine that is new here takes a place: Serve starts it after the other has left."""
        if record.state != EngineState.STARTING:
            self._replaced.pop(record.id, None)
            return record
        places = [
            (departure, at)
            for departure, at in self._still_awaited()
            if (departure.model, departure.pool) == (record.model, record.pool)
        ]
        if record.id not in self._engines and not record.replaces and places:
            self._awaited.remove(places[0])
            self._replaced[record.id] = places[0][0]
        place = self._replaced.get(record.id)
        return record if place is None else msgspec.structs.replace(record, replaces=place.id)

    def _still_awaited(self) -> list[tuple[Departure, float]]:
        self._awaited = [
            (departure, at) for departure, at in self._awaited if self._clock() - at < AWAITED_S
        ]
        return self._awaited

    def _forget_failures(self, model: str) -> None:
        """Forget those after which another start may succeed, as one of this model just has."""
        self._failures = deque(
            (f for f in self._failures if f.is_final or f.model != model), self._failures.maxlen
        )

    def _live(self, records: dict[str, tuple[R, float]]) -> dict[str, tuple[R, float]]:
        now = self._clock()
        return {key: entry for key, entry in records.items() if now - entry[1] < LAPSE_S}


class CountingRegistry(Registry):
    """A fleet's registry, which exports its counters as metrics."""

    def __init__(self, fleet: str) -> None:
        self._instruments = Instruments(fleet)
        super().__init__(count_failures=self._report_failures)

    def _report_failures(self, model: str, failures: int) -> None:
        with reporting():
            if not failures:
                self._instruments.begin(START_FAILURES, model)
            self._instruments.add(START_FAILURES, failures, {"model": model})


class RegistryActor:
    """The Ray actor: takes and returns encoded messages, and answers invalid ones too."""

    def __init__(self, fleet: str) -> None:
        self._registry = CountingRegistry(fleet)

    def ask(self, data: bytes) -> bytes:
        return ask(self._registry, data)


def ask(registry: Registry, data: bytes) -> bytes:
    """Answer one encoded call. A call that cannot be decoded gets `CallRefused`, which its caller
    logs."""
    try:
        request = records.decode_request(data)
    except ProtocolError as error:
        logger.warning("refused a registry call", extra={"reason": error.problem})
        return records.encode(CallRefused(error.problem))
    return records.encode(_answer(registry, request))


def _answer(registry: Registry, request: Request) -> Message:
    match request:
        case AnnounceEngine(record=engine, node_cores=node_cores):
            return registry.announce_engine(engine, node_cores)
        case AnnounceGateway(record=gateway):
            return registry.announce_gateway(gateway)
        case Withdraw(id=name, reason=reason, is_replaced=is_replaced):
            registry.withdraw(name, reason, is_replaced=is_replaced)
        case ReportFailure(failure=failure):
            registry.report_failure(failure)
        case DrainEngine(engine=name, order=order):
            registry.drain(name, order)
        case CloseNode(node=node, for_s=for_s):
            registry.close_node(node, for_s)
        case FirstPackage(code=code, uri=uri, missing=missing):
            return CodePackage(registry.first_package(code, uri, missing))
        case Read():
            return registry.snapshot()
    return Done()
