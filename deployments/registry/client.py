"""Registry client: engines and gateways announce themselves, commands query.

Calls and answers are the encoded messages of `records`. Older code uses a registry of another name,
whose records are pickled. This code does not find it: commands report that such a fleet does not
answer, and an in-place update (`python -m qwenfleet.deployments` again) starts a new registry next
to it. While Serve replaces the replicas, old gateways know the old engines and new gateways the new
ones; a new gateway answers 503 until the first new engine is ready. The old registry ends when all
replicas are new.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.experimental import internal_kv

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.registry import records
from qwenfleet.deployments.registry.actor import RegistryActor
from qwenfleet.deployments.registry.call_thread import in_thread
from qwenfleet.deployments.registry.records import (
    AnnounceEngine,
    AnnounceGateway,
    CloseNode,
    CodePackage,
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
    Snapshot,
    StartFailure,
    Withdraw,
)

logger = logging.getLogger(__name__)

NAMESPACE: Final = "qwenfleet"
ANNOUNCE_INTERVAL_S: Final = 1.0
CALL_TIMEOUT_S: Final = 5.0
HEAD_SHARE: Final = 0.001
"""Share of the head node's own resource, of which there is 1; Serve's controller takes as much
(ray 2.60 serve/_private/default_impl.py, `get_controller_impl`)."""
AWAY: Final = (ray.exceptions.RayError, ValueError)
"""Errors that the functions below raise while the registry restarts, or if the fleet has none. All
of them raise ProtocolError if its version is incompatible with ours."""

A = TypeVar("A", bound=Message)


class RegistryClient:
    """The registry as engines and gateways call it: each call has a deadline, and returns nothing
    while the registry is unavailable or incompatible."""

    def __init__(self, fleet: str) -> None:
        self._fleet = fleet
        self._actor: Any = None
        self._lookup: asyncio.Future[Any] | None = None
        self._problem = ""
        """Why the last call failed, so that each problem is logged once."""

    async def announce_engine(self, record: EngineRecord, node_cores: int) -> Orders:
        """Announce an engine; returns its orders, empty while the registry is unavailable."""
        return await self._ask(AnnounceEngine(record, node_cores), Orders) or Orders()

    async def announce_gateway(self, record: GatewayRecord) -> EngineList | None:
        """Announce a gateway; returns the engines, or None while the registry is unavailable."""
        return await self._ask(AnnounceGateway(record), EngineList)

    async def withdraw(self, id: str, reason: str = "", *, is_replaced: bool = False) -> None:
        """Remove an engine or gateway. `is_replaced`: an engine leaves after a drain that was
        ordered, and Serve starts another."""
        await self._ask(Withdraw(id, reason, is_replaced), Done)

    async def report_failure(self, failure: StartFailure) -> None:
        await self._ask(ReportFailure(failure), Done)

    async def _ask(self, request: Message, kind: type[A]) -> A | None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                if self._actor is None:
                    self._actor = await self._look_up()
                answer = _expect(kind, await self._actor.ask.remote(records.encode(request)))
        except (ray.exceptions.RayError, TimeoutError, ValueError, ProtocolError) as error:
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problem:
                call = type(request).__name__
                logger.warning("registry unavailable", extra={"call": call, "error": problem})
            self._actor, self._problem = None, problem
            return None
        if self._problem:
            logger.info("registry available again")
        self._problem = ""
        return answer

    async def _look_up(self) -> Any:
        """Find or start the registry. Ray's own call lasts for as long as its head is away, so it
        has one thread of its own, and a call that still runs is joined instead of repeated."""
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.wrap_future(in_thread(partial(_actor, self._fleet)))
            self._lookup.add_done_callback(_take_error)
        return await asyncio.shield(self._lookup)


def _take_error(lookup: asyncio.Future[Any]) -> None:
    """Mark the error as seen: the call that waited may have ended before."""
    if not lookup.cancelled():
        lookup.exception()


def read(fleet: str, timeout_s: float = CALL_TIMEOUT_S) -> Snapshot:
    """Read everything that the registry lists. Raises ValueError if the fleet has no registry."""
    return _ask(_existing(fleet), Read(), Snapshot, timeout_s)


def drain(fleet: str, engine: str, order: DrainOrder) -> None:
    """Order an engine to drain. Raises ValueError if the fleet has no registry."""
    _ask(_existing(fleet), DrainEngine(engine, order), Done)


def drain_gateways(fleet: str, order: DrainOrder) -> None:
    """Order every gateway to drain. Raises ValueError if the fleet has no registry."""
    for gateway in read(fleet).gateways:
        drain(fleet, gateway.id, order)


def close_node(fleet: str, node: str, for_s: float) -> None:
    """Keep engines from starting on a node for `for_s` seconds. Raises ValueError if the fleet has
    no registry."""
    _ask(_existing(fleet), CloseNode(node, for_s), Done)


def first_package(fleet: str, code: str, uri: str) -> str:
    """The package in which a fleet's replicas run this code. Starts the registry if needed.

    Ray deletes a package once neither a job nor an actor needs it; then `uri` takes its place. A
    restarted registry has forgotten the first package, so the next deploy moves the replicas, one
    after the other, to its own package.
    """
    actor = _actor(fleet)
    first = _ask(actor, FirstPackage(code, uri), CodePackage).uri
    if first != uri and not _is_stored(first):
        first = _ask(actor, FirstPackage(code, uri, missing=first), CodePackage).uri
    return first


def end(fleet: str) -> None:
    """Remove the fleet's registry."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(actor_name(fleet), namespace=NAMESPACE))
    end_legacy(fleet)


def end_legacy(fleet: str) -> None:
    """Remove the registry of older code, which used pickle. Call it when no replica runs that code
    any more: such a replica would start the registry again."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(legacy_name(fleet), namespace=NAMESPACE))


def actor_name(fleet: str) -> str:
    """The registry's name; different from `legacy_name`, so that callers that use pickle never
    reach it."""
    return f"{fleet}.registry"


def legacy_name(fleet: str) -> str:
    """The registry's name in older code, whose records are pickled."""
    return f"{fleet}-registry"


def fleets() -> list[str]:
    """Names of the fleets that have a registry on the Ray cluster of this process."""
    suffix = actor_name("")
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [str(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE]
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def _is_stored(uri: str) -> bool:
    """True if Ray still has this package; packages stored outside Ray count as present."""
    if not uri.startswith("gcs://"):
        return True
    return bool(internal_kv._internal_kv_exists(uri))


def _ask(actor: Any, request: Message, kind: type[A], timeout_s: float = CALL_TIMEOUT_S) -> A:
    return _expect(kind, ray.get(actor.ask.remote(records.encode(request)), timeout=timeout_s))


def _expect(kind: type[A], data: bytes) -> A:
    """Decode an answer. Raises ProtocolError if it is of another kind."""
    answer = records.decode_answer(data)
    if not isinstance(answer, kind):
        raise ProtocolError(
            f"the fleet's registry returned {type(answer).__name__} instead of {kind.__name__}"
        )
    return answer


def _existing(fleet: str) -> Any:
    return ray.get_actor(actor_name(fleet), namespace=NAMESPACE)


def _actor(fleet: str) -> Any:
    """The fleet's registry; starts it if there is none."""
    return ray.remote(RegistryActor).options(**options(fleet)).remote(fleet)


def options(fleet: str) -> dict[str, Any]:
    """The Ray options of a fleet's registry.

    Whoever asks first creates it, for example an engine. It must outlive every engine, so it runs
    on the head node, like Serve's controller, also on a head that replaces a lost one. The strategy
    is given because without one Ray would put it into the placement group of its creator, as Serve
    asks for the children of an engine's replica.
    """
    return {
        "name": actor_name(fleet),
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "resources": {HEAD_NODE_RESOURCE_NAME: HEAD_SHARE},
        "scheduling_strategy": "DEFAULT",
        "max_restarts": -1,
    }
