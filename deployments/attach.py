"""Attach: a command's way into the Ray cluster of a fleet that runs already."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from qwenfleet.cluster import run_file
from qwenfleet.cluster.errors import FleetNotFound
from qwenfleet.cluster.run_file import RunningFleet


def find(port: int | None = None) -> RunningFleet:
    """The newest fleet of this user on this machine, or the one at `port`. Raises FleetNotFound."""
    fleets = run_file.running()
    chosen = [fleet for fleet in fleets if port is None or fleet.url.endswith(f":{port}")]
    if chosen:
        return chosen[0]
    if fleets:
        urls = ", ".join(fleet.url for fleet in fleets)
        raise FleetNotFound(f"no fleet of yours runs at port {port}", f"These do: {urls}.")
    raise FleetNotFound(
        "no fleet of yours runs on this machine", "Start one with `qwenfleet serve`."
    )


@contextmanager
def attached(fleet: RunningFleet) -> Iterator[None]:
    """Inside, this process is a driver of the fleet's Ray cluster. Raises FleetNotFound when the
    cluster, or what is asked of it inside, does not answer."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = fleet.ray_token_path
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    from qwenfleet.deployments import registry

    try:
        ray.init(
            address=fleet.ray_address,
            namespace=registry.NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
        raise FleetNotFound(
            f"the fleet of process {fleet.pid} does not answer at {fleet.ray_address}",
            "It may still be starting, or be going down; try again in a moment.",
        ) from error
    finally:
        if ray.is_initialized():
            ray.shutdown()
