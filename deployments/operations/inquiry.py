"""Asks a running fleet for its status within a few seconds, whatever has died in it."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qwenfleet.cluster.errors import FleetNotFound, ProtocolError
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.deployments.operations import status
from qwenfleet.deployments.operations.attach import attached, prepare
from qwenfleet.deployments.operations.output import ray_output_to
from qwenfleet.deployments.operations.parts import VITAL, PartReader
from qwenfleet.deployments.operations.readiness import probe
from qwenfleet.deployments.operations.status import FleetStatus
from qwenfleet.deployments.registry.call_thread import in_thread

if TYPE_CHECKING:  # Ray is imported after `attach` has set its environment
    from qwenfleet.deployments.operations.failures import Deployed
    from qwenfleet.deployments.registry.records import Snapshot

    Answers = tuple[Snapshot | None, Sequence[Deployed], Sequence[str]]

LIMIT_S: Final = 4.0
"""Time for all answers, after Ray's import."""
REGISTRY_S: Final = 2.0
YOUNG_S: Final = 10.0
"""A registry that Ray has restarted may list nobody for a few seconds."""
YOUNG_WAIT_S: Final = 1.5
POLL_S: Final = 0.25


def read(running: RunningFleet) -> FleetStatus:
    """Read the status from everybody who answers in time."""
    http = in_thread(partial(probe, running.url))
    found = PartReader(running.pid).read()
    dead = [f"{part.name} is dead: the fleet ends" for part in VITAL if part not in found]
    if dead:
        return status.summarise(running, None, http.result(), problems=dead)
    with ray_output_to(Path(os.devnull)):
        snapshot, deployments, problems = _answers(running)
    return status.summarise(running, snapshot, http.result(), deployments, problems)


def _answers(running: RunningFleet) -> Answers:
    prepare(running)
    import ray

    try:
        return in_thread(partial(_ask, running)).result(timeout=LIMIT_S)
    except TimeoutError:
        atexit.unregister(ray.shutdown)  # at exit it would wait for the same answer
        atexit.register(os._exit, 1)
        nobody = f"Ray does not answer: nothing from the registry or Serve within {LIMIT_S:.0f} s"
        return None, (), (nobody,)
    except FleetNotFound as error:
        return None, (), (str(error),)


def _ask(running: RunningFleet) -> Answers:
    with attached(running):
        from qwenfleet.deployments.operations.observer import serve_view
        from qwenfleet.deployments.registry import client

        try:
            snapshot = client.read(running.name, REGISTRY_S)
            if snapshot.up_s is None or snapshot.up_s >= YOUNG_S:
                return snapshot, (), ()
            view = serve_view(running.name)
            give_up_at = time.monotonic() + YOUNG_WAIT_S
            while _is_short(snapshot, view) and time.monotonic() < give_up_at:
                time.sleep(POLL_S)
                snapshot = client.read(running.name, REGISTRY_S)
        except (*client.AWAY, ProtocolError) as error:
            why = f" ({error})" if isinstance(error, ProtocolError) else ""
            away = f"the registry does not answer{why}: figures of models are Serve's"
            return None, serve_view(running.name), (away,)
        if _is_short(snapshot, view):
            young = "the registry has just restarted: figures of models are Serve's"
            return None, view, (young,)
        return snapshot, (), ()


def _is_short(snapshot: Snapshot, view: Sequence[Deployed]) -> bool:
    """Whether the registry has not heard yet from every engine that Serve runs."""
    running = sum(one.running for one in view if one.name.startswith("engine-"))
    return len(snapshot.engines) < running
