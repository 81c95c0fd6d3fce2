"""Who is there: engines and gateways announce themselves to one small named actor, which answers
gateways with the engines.

No request depends on it. When it is away gateways go on with what they know, and everyone announces
again every second at least, so that a registry that starts empty is complete a second later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

import ray
from ray.experimental import internal_kv

from qwenfleet.cluster.labels import EngineState
from qwenfleet.cluster.metrics import START_FAILURES
from qwenfleet.deployments.registry.stages import Stage
from qwenfleet.deployments.telemetry.instruments import Instruments, reporting
from qwenfleet.deployments.wire.frames import EngineDescription

logger = logging.getLogger(__name__)

ANNOUNCE_INTERVAL_S: Final = 1.0
CALL_TIMEOUT_S: Final = 5.0
LAPSE_S: Final = 5.0
"""Five missed announcements: whoever is silent for this long is no longer listed."""
CORES_PER_START: Final = 4
"""An engine start runs two or three vLLM imports, 9 s of CPU each; with fewer cores to each, starts
only crowd."""
NAMESPACE: Final = "qwenfleet"
AWAY: Final = (ray.exceptions.RayError, ValueError)
"""What the functions below raise while the registry restarts, or where the fleet has none."""

R = TypeVar("R")


@dataclass(frozen=True)
class EngineRecord:
    """One engine, as it announces itself."""

    id: str
    model: str
    node: str
    pid: int
    """The process of its EngineHost."""
    state: str
    """A value of `EngineState`; a newer engine may be in one that we do not know."""
    is_loading: bool = False
    """Whether it holds one of its node's places for starting engines."""
    host: str = ""
    port: int = 0
    """Where its wire listens, once it is ready."""
    secret: str = ""
    description: EngineDescription | None = None
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    reason: str = ""
    """Why it is quarantined or draining."""
    stages: tuple[Stage, ...] = ()
    """Of its start."""
    pool: str = ""
    """The model's pool that it belongs to; empty when the model has none."""
    nodes: tuple[str, ...] = ()
    """Every node that it spans, `node` among them; empty from an engine that does not say."""


@dataclass(frozen=True)
class GatewayRecord:
    """One gateway, as it announces itself."""

    id: str
    node: str
    pid: int
    is_ready: bool
    models: tuple[str, ...] = ()
    """The models that it can answer for now."""
    requests: int = 0
    """Requests in flight."""
    stages: tuple[Stage, ...] = ()
    """Of its start."""


@dataclass(frozen=True)
class DrainOrder:
    """An operator wants an engine gone, or its node or pod is about to go."""

    reason: str
    deadline_s: float


@dataclass(frozen=True)
class Orders:
    """What the registry answers an engine."""

    may_load: bool = False
    """Whether it is its turn: few engines may start on one node at a time."""
    drain: DrainOrder | None = None


@dataclass(frozen=True)
class StartFailure:
    """An engine that did not come up."""

    engine: str
    model: str
    reason: str
    log_file: str | None
    is_final: bool = False
    """Whether another try would fail in the same way."""


@dataclass(frozen=True)
class Snapshot:
    engines: tuple[EngineRecord, ...]
    gateways: tuple[GatewayRecord, ...]
    failures: tuple[StartFailure, ...]


class Registry:
    """The actor's state. `clock` is monotonic seconds."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        count_failures: Callable[[str, int], None] = lambda model, failures: None,
    ) -> None:
        """`count_failures` is told of each model that its engines gave up so many starts more."""
        self._clock = clock
        self._count_failures = count_failures
        self._models: set[str] = set()
        self._engines: dict[str, tuple[EngineRecord, float]] = {}
        self._gateways: dict[str, tuple[GatewayRecord, float]] = {}
        self._failures: deque[StartFailure] = deque(maxlen=32)
        self._drains: dict[str, DrainOrder] = {}
        self._packages: dict[str, str] = {}
        self._closed: dict[str, float] = {}
        """Nodes on which no engine starts, and until when."""

    def announce_engine(self, record: EngineRecord, node_cores: int) -> Orders:
        """List an engine."""
        if record.model not in self._models:
            self._models.add(record.model)
            self._count_failures(record.model, 0)
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
            record = replace(record, is_loading=True)
        if record.state == EngineState.READY:
            self._failures = deque(
                (f for f in self._failures if f.is_final or f.model != record.model),
                self._failures.maxlen,
            )
        self._engines[record.id] = (record, self._clock())
        return Orders(may_load, self._drains.get(record.id))

    def drain(self, engine: str, order: DrainOrder) -> None:
        """The engine gets the order with its next announcement."""
        self._drains[engine] = order

    def close_node(self, node: str, for_s: float) -> None:
        """No engine gets its turn to start there for so many seconds."""
        self._closed[node] = self._clock() + for_s

    def announce_gateway(self, record: GatewayRecord) -> tuple[EngineRecord, ...]:
        """List a gateway. Answers with every engine."""
        self._gateways[record.id] = (record, self._clock())
        return self.snapshot().engines

    def withdraw(self, id: str) -> None:
        """An engine or gateway says goodbye."""
        self._engines.pop(id, None)
        self._gateways.pop(id, None)
        self._drains.pop(id, None)

    def report_failure(self, failure: StartFailure) -> None:
        self._failures.append(failure)
        if failure.engine not in self._gateways:
            self._count_failures(failure.model, 1)
        self.withdraw(failure.engine)

    def first_package(self, code: str, uri: str, gone: str = "") -> str:
        """The package in which this code came first: this one, if it never did, or in `gone`."""
        if self._packages.get(code, gone) == gone:
            self._packages[code] = uri
        return self._packages[code]

    def snapshot(self) -> Snapshot:
        self._engines = self._live(self._engines)
        self._gateways = self._live(self._gateways)
        return Snapshot(
            engines=tuple(record for record, _ in self._engines.values()),
            gateways=tuple(record for record, _ in self._gateways.values()),
            failures=tuple(self._failures),
        )

    def _live(self, records: dict[str, tuple[R, float]]) -> dict[str, tuple[R, float]]:
        now = self._clock()
        return {key: entry for key, entry in records.items() if now - entry[1] < LAPSE_S}


class RegistryClient:
    """The registry as others call it: each call has a deadline and answers None while it is
    away."""

    def __init__(self, fleet: str) -> None:
        self._fleet = fleet
        self._actor: Any = None

    async def announce_engine(self, record: EngineRecord, node_cores: int) -> Orders:
        """What this engine is to do; nothing while the registry is away."""
        return await self._call("announce_engine", record, node_cores) or Orders()

    async def announce_gateway(self, record: GatewayRecord) -> tuple[EngineRecord, ...]:
        """The engines; none while the registry is away."""
        return await self._call("announce_gateway", record) or ()

    async def withdraw(self, id: str) -> None:
        await self._call("withdraw", id)

    async def report_failure(self, failure: StartFailure) -> None:
        await self._call("report_failure", failure)

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(_actor, self._fleet)
                return await getattr(self._actor, method).remote(*arguments)
        except (ray.exceptions.RayError, TimeoutError, ValueError) as error:
            logger.warning("registry away", extra={"method": method, "error": str(error)})
            self._actor = None
            return None


def read(fleet: str) -> Snapshot:
    """What an existing registry knows. Raises ValueError when the fleet has none."""
    actor = ray.get_actor(actor_name(fleet), namespace=NAMESPACE)
    return cast(Snapshot, ray.get(actor.snapshot.remote(), timeout=CALL_TIMEOUT_S))


def drain(fleet: str, engine: str, order: DrainOrder) -> None:
    """Order an engine to drain. Raises ValueError when the fleet has no registry."""
    actor = ray.get_actor(actor_name(fleet), namespace=NAMESPACE)
    ray.get(actor.drain.remote(engine, order), timeout=CALL_TIMEOUT_S)


def first_package(fleet: str, code: str, uri: str) -> str:
    """The package in which a fleet's replicas run this code. Starts the registry.

    Ray deletes a package when neither a job nor an actor needs it; then this one takes its place.
    A registry that restarted has forgotten the first one, so that the next deploy moves the
    replicas, one after the other, into its own package.
    """
    actor = _actor(fleet)
    first = ray.get(actor.first_package.remote(code, uri), timeout=CALL_TIMEOUT_S)
    if first != uri and not _is_stored(first):
        first = ray.get(actor.first_package.remote(code, uri, first), timeout=CALL_TIMEOUT_S)
    return cast(str, first)


def _is_stored(uri: str) -> bool:
    """Whether Ray still has a package; what a user stores elsewhere is taken to be there."""
    if not uri.startswith("gcs://"):
        return True
    return bool(internal_kv._internal_kv_exists(uri))


def end(fleet: str) -> None:
    """Forget the fleet."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(actor_name(fleet), namespace=NAMESPACE))


def close_node(fleet: str, node: str, for_s: float) -> None:
    """Let no engine start on a node. Raises ValueError when the fleet has no registry."""
    actor = ray.get_actor(actor_name(fleet), namespace=NAMESPACE)
    ray.get(actor.close_node.remote(node, for_s), timeout=CALL_TIMEOUT_S)


def fleets() -> list[str]:
    """The fleets of the Ray cluster that this process has joined, by their registries."""
    suffix = actor_name("")
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [str(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE]
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def actor_name(fleet: str) -> str:
    return f"{fleet}-registry"


class CountingRegistry(Registry):
    """The registry of a fleet, which reports what it counts."""

    def __init__(self, fleet: str) -> None:
        self._instruments = Instruments(fleet)
        super().__init__(count_failures=self._report_failures)

    def _report_failures(self, model: str, failures: int) -> None:
        with reporting():
            if not failures:
                self._instruments.begin(START_FAILURES, model)
            self._instruments.add(START_FAILURES, failures, {"model": model})


def _actor(fleet: str) -> Any:
    """The fleet's registry, started when there is none."""
    return (
        ray.remote(CountingRegistry)
        .options(
            name=actor_name(fleet),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
        )
        .remote(fleet)
    )
