"""Draining engines: streams leave them, then they end, and Serve starts others in their place.

`qwenfleet drain ENGINE` drains one; `drain_hosts` and an engine's own watch of its node drain by
the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from qwenfleet.cluster.errors import DrainRefused
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.deployments.operations.attach import attached

if TYPE_CHECKING:  # Ray is imported when `attach` has set what it reads
    from qwenfleet.deployments.registry.client import DrainOrder, EngineRecord, Snapshot

POLL_S: Final = 0.25
GONE_S: Final = 2.0
"""An engine announces itself every second: one that is not listed for two has ended."""
GRACE_S: Final = 30.0
"""What an engine needs beyond its deadline to hear the order, say goodbye and end its core."""
CLOSED_S: Final = 60.0
"""Beyond the drain's end no engine starts on closed nodes; by then Kubernetes has them cordoned,
which engines see themselves."""


class FleetRegistry(Protocol):
    """What a drain asks a fleet's registry: the module `registry`, or a test's own. All three
    functions raise AWAY."""

    @property
    def AWAY(self) -> tuple[type[Exception], ...]:
        """What the functions raise while the registry restarts, or when the fleet has none."""

    def read(self, fleet: str) -> Snapshot:
        """Who is listed now."""

    def drain(self, fleet: str, engine: str, order: DrainOrder) -> None:
        """Order one engine to drain."""

    def close_node(self, fleet: str, node: str, for_s: float) -> None:
        """Let no engine start on a node for so many seconds."""


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
    """Drain one engine and wait until it has ended. `engine` is an id or the start of one.

    Raises DrainRefused when the id names no engine, or the last ready one of its model without
    `is_forced`; FleetNotFound when the fleet does not answer.
    """
    with attached(running):
        from qwenfleet.deployments.registry import client as registry

        chosen = choose(registry.read(running.name).engines, engine, is_forced=is_forced)
        order = registry.DrainOrder("an operator drains it", deadline_s)
        say(f"draining {chosen.id}: {chosen.running + chosen.waiting} requests to move")
        stayed = drain_all(
            registry,
            running.name,
            [chosen.id],
            order,
            on_end=lambda ended: say(
                f"{ended} is gone; another engine of {chosen.model} starts in its place"
            ),
            clock=clock,
            sleep=sleep,
        )
    if stayed:
        raise DrainRefused(
            f"engine '{chosen.id}' is still there after {deadline_s + GRACE_S:.0f} s",
            "See its log, or end its process; its streams go on elsewhere all the same.",
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
    """Order engines to drain and wait until they end, `on_end` called with each; the answer is
    those that are still listed GRACE_S after the order's deadline.

    On `closed_nodes` no engine starts meanwhile. A registry that restarts is waited for.
    """
    seen_at = dict.fromkeys(engines, clock())
    give_up_at = clock() + order.deadline_s + GRACE_S
    while seen_at and clock() < give_up_at:
        try:  # each time anew: a registry that restarts lost all of it, and lists nobody at first
            for node in closed_nodes:
                registry.close_node(fleet, node, give_up_at - clock() + CLOSED_S)
            for engine in seen_at:
                registry.drain(fleet, engine, order)
            listed = {record.id for record in registry.read(fleet).engines}
        except registry.AWAY:
            listed = set(seen_at)  # nobody knows
        for engine in list(seen_at):
            if engine in listed:
                seen_at[engine] = clock()
            elif clock() > seen_at[engine] + GONE_S:
                del seen_at[engine]
                on_end(engine)
        sleep(POLL_S)
    return sorted(seen_at)


def choose(engines: Sequence[EngineRecord], name: str, *, is_forced: bool) -> EngineRecord:
    """The one engine whose id begins with `name`. Raises DrainRefused."""
    found = [e for e in engines if e.id == name] or [e for e in engines if e.id.startswith(name)]
    if len(found) != 1:
        problem = "no engine" if not found else "more than one engine"
        names = ", ".join(e.id for e in found or engines) or "none"
        raise DrainRefused(f"{problem} is called '{name}'", f"There are: {names}.")
    (engine,) = found
    if engine.state == "starting":
        raise DrainRefused(
            f"engine '{engine.id}' is still starting", "It has no streams: wait until it is ready."
        )
    others = [
        e for e in engines if e.model == engine.model and e.state == "ready" and e is not engine
    ]
    if not others and not is_forced:
        raise DrainRefused(
            f"engine '{engine.id}' is the last ready one of model '{engine.model}', whose requests "
            "would wait for its replacement",
            "Wait until another engine is ready, or add --force.",
        )
    return engine
