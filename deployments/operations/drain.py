"""Drains engines: their streams move, then the engines stop and Serve starts replacements.

`qwenfleet drain ENGINE` drains one. `drain_hosts` and the engine's own watch of its node use the
same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from qwenfleet.cluster.errors import DrainRefused
from qwenfleet.cluster.labels import EngineState
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.deployments.operations.attach import attached
from qwenfleet.deployments.registry.records import DrainOrder, EngineRecord, Snapshot

POLL_S: Final = 0.25
UNLISTED_S: Final = 2.0
"""An engine announces itself every second: one that is not listed for two seconds has stopped."""
GRACE_S: Final = 30.0
"""Time beyond the deadline for an engine to receive the order, withdraw and stop its core."""
CLOSED_S: Final = 60.0
"""How long nodes stay closed after the drain: by then they are cordoned in Kubernetes, which
engines detect themselves."""


class FleetRegistry(Protocol):
    """The registry calls that a drain needs. All three functions raise AWAY."""

    @property
    def AWAY(self) -> tuple[type[Exception], ...]:
        """Exceptions raised while the registry restarts, or if the fleet has none."""

    def read(self, fleet: str) -> Snapshot:
        """Return the engines and gateways listed now."""

    def drain(self, fleet: str, engine: str, order: DrainOrder) -> None:
        """Order one engine to drain."""

    def close_node(self, fleet: str, node: str, for_s: float) -> None:
        """Keep engines from starting on a node for `for_s` seconds."""


def drain(
    running: RunningFleet,
    engine: str,
    *,
    deadline_s: float,
    is_forced: bool,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Drain one engine and wait until it has stopped. `engine` is an id or the start of one.

    Raises DrainRefused when the id matches no engine or, without `is_forced`, the last ready one
    of its model; FleetNotFound when the fleet does not answer.
    """
    with attached(running):
        from qwenfleet.deployments.registry import client as registry

        chosen = choose(registry.read(running.name).engines, engine, is_forced=is_forced)
        order = DrainOrder("drained by an operator", deadline_s)
        say(f"draining {chosen.id}: {chosen.running + chosen.waiting} requests to move")
        stayed = drain_all(
            registry,
            running.name,
            [chosen.id],
            order,
            on_end=lambda ended: say(
                f"{ended} stopped; another engine of {chosen.model} starts in its place"
            ),
            clock=clock,
            sleep=sleep,
        )
    if stayed:
        raise DrainRefused(
            f"engine '{chosen.id}' did not stop within {deadline_s + GRACE_S:.0f} s",
            "See its log, or kill its process; its streams continue on other engines.",
        )


def drain_all(
    registry: FleetRegistry,
    fleet: str,
    engines: Collection[str],
    order: DrainOrder,
    *,
    on_end: Callable[[str], None],
    closed_nodes: Collection[str] = (),
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Order engines to drain and wait until they stop, calling `on_end` for each. Return those
    still listed GRACE_S after the order's deadline.

    Meanwhile, no engine starts on `closed_nodes`. If the registry restarts, the drain waits for it.
    """
    seen_at = dict.fromkeys(engines, clock())
    give_up_at = clock() + order.deadline_s + GRACE_S
    while seen_at and clock() < give_up_at:
        try:  # repeat all orders: a restarted registry has lost them and its list
            for node in closed_nodes:
                registry.close_node(fleet, node, give_up_at - clock() + CLOSED_S)
            for engine in seen_at:
                registry.drain(fleet, engine, order)
            listed = {record.id for record in registry.read(fleet).engines}
        except registry.AWAY:
            listed = set(seen_at)  # unknown: assume that all still run
        for engine in list(seen_at):
            if engine in listed:
                seen_at[engine] = clock()
            elif clock() > seen_at[engine] + UNLISTED_S:
                del seen_at[engine]
                on_end(engine)
        sleep(POLL_S)
    return sorted(seen_at)


def choose(engines: Sequence[EngineRecord], name: str, *, is_forced: bool) -> EngineRecord:
    """Return the one engine whose id begins with `name`. Raises DrainRefused."""
    found = [e for e in engines if e.id == name] or [e for e in engines if e.id.startswith(name)]
    if len(found) != 1:
        problem = "no engine" if not found else "more than one engine"
        names = ", ".join(e.id for e in found or engines) or "none"
        raise DrainRefused(f"{problem} is called '{name}'", f"There are: {names}.")
    (engine,) = found
    if engine.state == EngineState.STARTING:
        raise DrainRefused(
            f"engine '{engine.id}' is still starting", "It has no streams: wait until it is ready."
        )
    others = [
        e
        for e in engines
        if e.model == engine.model and e.state == EngineState.READY and e is not engine
    ]
    if not others and not is_forced:
        raise DrainRefused(
            f"engine '{engine.id}' is the last ready engine of model '{engine.model}', whose "
            "requests would wait for its replacement",
            "Wait until another engine is ready, or add --force.",
        )
    return engine
