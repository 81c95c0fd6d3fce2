"""Draining every engine on some hosts, from inside their Ray cluster.

`qwenfleet drain --node` runs `python -m qwenfleet.deployments.host_drain ADDRESS…` in the head pod
of each Ray cluster that has pods on the node; the addresses are the pods'.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from qwenfleet.cluster.errors import DrainRefused, FleetError

POLL_S: Final = 0.25
GRACE_S: Final = 30.0
"""As for one engine: see `drain.py`."""
GONE_S: Final = 2.0
CLOSED_S: Final = 60.0
"""Beyond the drain's end no engine starts on the hosts; by then their node is cordoned, which
engines see themselves."""


def node_ids(nodes: Iterable[Mapping[str, Any]], addresses: Iterable[str]) -> frozenset[str]:
    """Of Ray's living nodes at some addresses; from `ray.nodes()`."""
    wanted = set(addresses)
    return frozenset(
        str(node["NodeID"])
        for node in nodes
        if node.get("Alive") and node.get("NodeManagerAddress") in wanted
    )


def leaving(engines: Iterable[Any], nodes: frozenset[str]) -> list[Any]:
    """Engines that have at least a part on one of the nodes."""
    return [engine for engine in engines if nodes & {engine.node, *engine.nodes}]


def check(engines: Sequence[Any], chosen: Sequence[Any], *, is_forced: bool) -> None:
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
    registry: Any,
    fleet: str,
    nodes: frozenset[str],
    *,
    deadline_s: float,
    is_forced: bool,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Order it and wait until no engine is on the nodes; `registry` is that module.

    Engines that only start there have no streams: they are held from starting. A registry that
    restarts meanwhile is waited for. Raises DrainRefused; what `registry.AWAY` lists when the
    registry is away from the first.
    """
    chosen = _chosen(registry, fleet, nodes, is_forced=is_forced)
    _close(registry, fleet, nodes, deadline_s + GRACE_S + CLOSED_S)
    order = registry.DrainOrder("an operator drains its node", deadline_s)
    for engine in chosen:
        say(f"draining {engine.id} of {engine.model}: {engine.running + engine.waiting} requests")
    seen_at = {engine.id: clock() for engine in chosen}
    give_up_at = clock() + deadline_s + GRACE_S
    while seen_at and clock() < give_up_at:
        try:  # each time anew: a registry that restarts lost all of it, and lists nobody at first
            _close(registry, fleet, nodes, give_up_at - clock() + CLOSED_S)
            for engine in seen_at:
                registry.drain(fleet, engine, order)
            present = {engine.id for engine in registry.read(fleet).engines}
        except registry.AWAY:
            present = set(seen_at)  # nobody knows
        for engine in list(seen_at):
            if engine in present:
                seen_at[engine] = clock()
            elif clock() > seen_at[engine] + GONE_S:
                del seen_at[engine]
                say(f"{engine} is gone")
        sleep(POLL_S)
    if seen_at:
        raise DrainRefused(
            f"{' and '.join(sorted(seen_at))} still there after {deadline_s + GRACE_S:.0f} s",
            "See the engine's log; its streams go on elsewhere all the same when its pod ends.",
        )


def _chosen(registry: Any, fleet: str, nodes: frozenset[str], *, is_forced: bool) -> list[Any]:
    """The engines that have to go. Raises DrainRefused."""
    there = registry.read(fleet).engines
    chosen = [engine for engine in leaving(there, nodes) if engine.state != "starting"]
    check(there, chosen, is_forced=is_forced)
    return chosen


def _close(registry: Any, fleet: str, nodes: Iterable[str], for_s: float) -> None:
    for node in nodes:
        registry.close_node(fleet, node, for_s)


def drain_fleets(
    registry: Any,
    fleets: Sequence[str],
    nodes: frozenset[str],
    *,
    deadline_s: float,
    is_forced: bool,
    say: Callable[[str], None],
) -> None:
    """All at once, so that one deadline holds for all; none when one is refused from the first."""
    for fleet in fleets:
        _chosen(registry, fleet, nodes, is_forced=is_forced)

    def drain(fleet: str) -> None:
        drain_fleet(registry, fleet, nodes, deadline_s=deadline_s, is_forced=is_forced, say=say)

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
    from qwenfleet.deployments import attach

    with attach.cluster(None, address):
        import ray

        from qwenfleet.deployments import registry

        nodes = node_ids(ray.nodes(), addresses)
        if not nodes:
            say(f"Ray has no living node at {', '.join(addresses)}: no engine is there")
        drain_fleets(
            *(registry, registry.fleets(), nodes),
            deadline_s=deadline_s,
            is_forced=is_forced,
            say=say,
        )


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
