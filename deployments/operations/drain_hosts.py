"""Drains every engine on some hosts, from inside their Ray cluster.

`qwenfleet drain --node` runs `python -m qwenfleet.deployments.operations.drain_hosts ADDRESS…` in
the head pod of each Ray cluster that has pods on the node. The addresses are those of the pods.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qwenfleet.cluster.errors import DrainRefused, FleetError
from qwenfleet.cluster.labels import EngineState
from qwenfleet.deployments.operations.drain import CLOSED_S, GRACE_S, FleetRegistry, drain_all
from qwenfleet.deployments.registry.records import DrainOrder, EngineRecord

REASON = "its node is drained by an operator"


def node_ids(nodes: Iterable[Mapping[str, Any]], addresses: Iterable[str]) -> frozenset[str]:
    """Return the ids of Ray's live nodes at some addresses; `nodes` comes from `ray.nodes()`."""
    wanted = set(addresses)
    return frozenset(
        str(node["NodeID"])
        for node in nodes
        if node.get("Alive") and node.get("NodeManagerAddress") in wanted
    )


def leaving(engines: Iterable[EngineRecord], nodes: frozenset[str]) -> list[EngineRecord]:
    """Return the engines that use one of the nodes."""
    return [engine for engine in engines if nodes & {engine.node, *engine.nodes}]


def check(
    engines: Sequence[EngineRecord], chosen: Sequence[EngineRecord], *, is_forced: bool
) -> None:
    """Raise DrainRefused if a model would have no ready engine left, unless `is_forced`."""
    going = {engine.id for engine in chosen}
    models = sorted({engine.model for engine in chosen if engine.state == EngineState.READY})
    left = {e.model for e in engines if e.state == EngineState.READY and e.id not in going}
    alone = [f"'{model}'" for model in models if model not in left]
    if alone and not is_forced:
        raise DrainRefused(
            f"every ready engine of model {' and '.join(alone)} uses this node, so requests would "
            "have to wait for a new engine",
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
    """Drain the engines on the nodes and wait until all have stopped.

    Engines that are still starting there have no streams: their start is held. Raises
    DrainRefused, and what `registry.AWAY` lists if the registry is away at the start.
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
        on_end=lambda ended: say(f"{ended} stopped"),
        closed_nodes=nodes,
        clock=clock,
        sleep=sleep,
    )
    if stayed:
        raise DrainRefused(
            f"{' and '.join(stayed)} did not stop within {order.deadline_s + GRACE_S:.0f} s",
            "See the engine log; when its pod ends, its streams continue on other engines.",
        )


def _chosen(
    registry: FleetRegistry, fleet: str, nodes: frozenset[str], *, is_forced: bool
) -> list[EngineRecord]:
    """Return the engines to drain. Raises DrainRefused."""
    there = registry.read(fleet).engines
    chosen = [engine for engine in leaving(there, nodes) if engine.state != EngineState.STARTING]
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
    """Drain all fleets in parallel, so that one deadline holds for all. If one fleet is refused,
    none is drained."""
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
            say(f"Ray has no live node at {', '.join(addresses)}, so no engine runs there")
        order = DrainOrder(REASON, deadline_s)
        drain_fleets(registry, registry.fleets(), nodes, order, is_forced=is_forced, say=say)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="drain_hosts", description=run.__doc__)
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS")
    parser.add_argument("--address", default="auto", help="address of the cluster (default auto)")
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
