"""Draining every engine on some hosts, from inside their Ray cluster.

`qwenfleet drain --node` runs `python -m qwenfleet.deployments.operations.drain_hosts ADDRESS…` in
the head pod of each Ray cluster that has pods on the node; the addresses are the pods'.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from qwenfleet.cluster.errors import DrainRefused, FleetError
from qwenfleet.deployments.operations.drain import CLOSED_S, GRACE_S, FleetRegistry, drain_all

if TYPE_CHECKING:  # Ray is imported when `attach` has set what it reads
    from qwenfleet.deployments.registry.client import DrainOrder, EngineRecord

REASON = "an operator drains its node"


def node_ids(nodes: Iterable[Mapping[str, Any]], addresses: Iterable[str]) -> frozenset[str]:
    """Of Ray's living nodes at some addresses; from `ray.nodes()`."""
    wanted = set(addresses)
    return frozenset(
        str(node["NodeID"])
        for node in nodes
        if node.get("Alive") and node.get("NodeManagerAddress") in wanted
    )


def leaving(engines: Iterable[EngineRecord], nodes: frozenset[str]) -> list[EngineRecord]:
    """Engines that have at least a part on one of the nodes."""
    return [engine for engine in engines if nodes & {engine.node, *engine.nodes}]


def check(
    engines: Sequence[EngineRecord], chosen: Sequence[EngineRecord], *, is_forced: bool
) -> None:
    """Raises DrainRefused when a model would have no ready engine left, without `is_forced`."""
    going = {engine.id for engine in chosen}
    models = sorted({engine.model for engine in chosen if engine.state == "ready"})
    left = {e.model for e in engines if e.state == "ready" and e.id not in going}
    alone = [f"'{model}'" for model in models if model not in left]
    if alone and not is_forced:
        raise DrainRefused(
            f"every ready engine of model {' and '.join(alone)} has a part on this node; their "
            "requests would wait for another",
            "Wait until an engine on another node is ready, or add --force.",
        )


def drain_fleet(
    registry: FleetRegistry,
    fleet: str,
    nodes: frozenset[str],
    order: DrainOrder,
    *,
    is_forced: bool,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Drain the engines on the nodes and wait until none is there.

    Engines that only start there have no streams: they are held from starting. Raises
    DrainRefused; what `registry.AWAY` lists when the registry is away from the first.
    """
    chosen = _chosen(registry, fleet, nodes, is_forced=is_forced)
    for node in nodes:
        registry.close_node(fleet, node, order.deadline_s + GRACE_S + CLOSED_S)
    for engine in chosen:
        say(f"draining {engine.id} of {engine.model}: {engine.running + engine.waiting} requests")
    stayed = drain_all(
        registry,
        fleet,
        [engine.id for engine in chosen],
        order,
        on_end=lambda ended: say(f"{ended} is gone"),
        closed_nodes=nodes,
        clock=clock,
        sleep=sleep,
    )
    if stayed:
        raise DrainRefused(
            f"{' and '.join(stayed)} still there after {order.deadline_s + GRACE_S:.0f} s",
            "See the engine's log; its streams go on elsewhere all the same when its pod ends.",
        )


def _chosen(
    registry: FleetRegistry, fleet: str, nodes: frozenset[str], *, is_forced: bool
) -> list[EngineRecord]:
    """The engines that have to go. Raises DrainRefused."""
    there = registry.read(fleet).engines
    chosen = [engine for engine in leaving(there, nodes) if engine.state != "starting"]
    check(there, chosen, is_forced=is_forced)
    return chosen


def drain_fleets(
    registry: FleetRegistry,
    fleets: Sequence[str],
    nodes: frozenset[str],
    order: DrainOrder,
    *,
    is_forced: bool,
    say: Callable[[str], None],
) -> None:
    """All at once, so that one deadline holds for all; none when one is refused from the first."""
    for fleet in fleets:
        _chosen(registry, fleet, nodes, is_forced=is_forced)

    def drain(fleet: str) -> None:
        drain_fleet(registry, fleet, nodes, order, is_forced=is_forced, say=say)

    with ThreadPoolExecutor(max(1, len(fleets))) as pool:
        drains = [pool.submit(drain, fleet) for fleet in fleets]
    for ended in drains:
        ended.result()


def run(
    addresses: Sequence[str],
    address: str,
    *,
    deadline_s: float,
    is_forced: bool,
    say: Callable[[str], None],
) -> None:
    """Drain all fleets of the Ray cluster at `address`. Raises DrainRefused, FleetNotFound."""
    from qwenfleet.deployments.operations import attach

    with attach.cluster(None, address):
        import ray

        from qwenfleet.deployments.registry import client as registry

        nodes = node_ids(ray.nodes(), addresses)
        if not nodes:
            say(f"Ray has no living node at {', '.join(addresses)}: no engine is there")
        order = registry.DrainOrder(REASON, deadline_s)
        drain_fleets(registry, registry.fleets(), nodes, order, is_forced=is_forced, say=say)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="host_drain", description=run.__doc__)
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS")
    parser.add_argument("--address", default="auto", help="of the Ray cluster (default auto)")
    parser.add_argument("--deadline", type=float, default=60.0)
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args(arguments)
    try:
        run(
            options.addresses,
            options.address,
            deadline_s=options.deadline,
            is_forced=options.force,
            say=lambda text: print(text, flush=True),
        )
    except FleetError as error:
        print(f"qwenfleet: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
