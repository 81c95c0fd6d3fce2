"""Farewell: the last seconds of the requests of a fleet that stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import ray

from qwenfleet.deployments.registry import client
from qwenfleet.deployments.registry.records import DrainOrder

FAREWELL_S: Final = 5.0
"""Time for requests to finish; then each gets an error that its client can read."""
MARGIN_S: Final = 2.0
"""Time for the order to arrive and for the errors to leave."""
POLL_S: Final = 0.25


def end_requests(
    fleet: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Have gateways end their requests, and wait until they have. Serve, which stops next, would
    give streams as long as when a gateway is replaced."""
    if not ray.is_initialized():
        return
    try:
        client.drain_gateways(fleet, DrainOrder("the fleet stops", FAREWELL_S))
        give_up_at = clock() + FAREWELL_S + MARGIN_S
        while clock() < give_up_at and any(g.requests for g in client.read(fleet).gateways):
            sleep(POLL_S)
    except client.AWAY:  # a fleet without a registry has no gateway either
        return
