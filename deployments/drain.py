"""`qwenfleet drain`: streams leave an engine, then it ends, and Serve starts another for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from qwenfleet.cluster.errors import DrainRefused
from qwenfleet.cluster.run_file import RunningFleet
from qwenfleet.deployments.attach import attached

POLL_S: Final = 0.25
GONE_S: Final = 2.0
"""An engine announces itself every second: one that is not listed for two has gone."""
GRACE_S: Final = 30.0
"""What an engine needs beyond its deadline to hear the order, say goodbye and end its core."""


def drain(
    fleet: RunningFleet,
    engine: str,
    *,
    deadline_s: float,
    is_forced: bool,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Order it and wait until the engine is gone. `engine` is an id or the start of one.

    Raises DrainRefused when the id names no engine, or the last ready one of its model without
    `is_forced`; FleetNotFound when the fleet does not answer.
    """
    with attached(fleet):
        from qwenfleet.deployments import registry

        chosen = choose(registry.read(fleet.name).engines, engine, is_forced=is_forced)
        order = registry.DrainOrder("an operator drains it", deadline_s)
        say(f"draining {chosen.id}: {chosen.running + chosen.waiting} requests to move")
        give_up_at = clock() + deadline_s + GRACE_S
        seen_at = clock()
        while clock() < give_up_at:
            # Each time anew: a registry that restarts lost the order, and lists nobody at first.
            try:
                registry.drain(fleet.name, chosen.id, order)
                is_listed = chosen.id in {e.id for e in registry.read(fleet.name).engines}
            except registry.AWAY:
                is_listed = True  # nobody knows
            if is_listed:
                seen_at = clock()
            elif clock() > seen_at + GONE_S:
                say(f"{chosen.id} is gone; another engine of {chosen.model} starts in its place")
                return
            sleep(POLL_S)
    raise DrainRefused(
        f"engine '{chosen.id}' is still there after {deadline_s + GRACE_S:.0f} s",
        "See its log, or end its process; its streams go on elsewhere all the same.",
    )


def choose(engines: Sequence[Any], name: str, *, is_forced: bool) -> Any:
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
