"""Connect a command to the Ray cluster of a running fleet."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from qwenfleet.cluster.errors import FleetNotFound, one_line
from qwenfleet.cluster.local import fleets as running_fleets
from qwenfleet.cluster.local import programs
from qwenfleet.cluster.local.fleets import RunningFleet

CONNECT_TIMEOUT_S: Final = 5.0


def find(port: int | None = None, name: str | None = None) -> RunningFleet:
    """Return this user's newest fleet on this machine, or the one at `port` or called `name`.

    Raises FleetNotFound.
    """
    fleets = running_fleets.running()
    chosen = [
        running
        for running in fleets
        if port in (None, running.port) and name in (None, running.name)
    ]
    if chosen:
        return chosen[0]
    for killed in running_fleets.killed():
        if port in (None, killed.port) and name in (None, killed.name):
            raise FleetNotFound(
                f"the launcher (process {killed.pid}) of fleet '{killed.name}' at {killed.url} "
                "was killed",
                "Its processes end within seconds, or with the next `qwenfleet serve`.",
            )
    if fleets and name is not None:
        names = ", ".join(f"'{running.name}' at {running.url}" for running in fleets)
        raise FleetNotFound(f"you have no running fleet called '{name}'", f"Running: {names}.")
    if fleets:
        urls = ", ".join(running.url for running in fleets)
        raise FleetNotFound(f"you have no running fleet at port {port}", f"Running: {urls}.")
    raise FleetNotFound(
        "you have no running fleet on this machine", "Start one with `qwenfleet serve`."
    )


def prepare(running: RunningFleet) -> None:
    """Set what Ray reads from the environment when it is imported."""
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = running.ray_token_path
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def attached(running: RunningFleet) -> AbstractContextManager[None]:
    """Make this process a driver of the fleet's Ray cluster for the length of the block.

    Raises FleetNotFound when the cluster does not answer, on entry or inside the block.
    """
    prepare(running)
    absence = FleetNotFound(
        f"the fleet of process {running.pid} does not answer at {running.ray_address}",
        "It may still be starting or shutting down; try again in a moment.",
    )
    _check_listener(running.ray_address, absence)
    return _driver(running.ray_address, absence)


def cluster(port: int | None, address: str | None) -> AbstractContextManager[None]:
    """Attach to the fleet at `port` or, with an address, to any Ray cluster that has this machine
    as a node. `auto` is the newest fleet here or, without one, the cluster whose raylet runs here.

    For a cluster without a fleet, Ray looks up this user's token itself.
    """
    if address is None:
        return attached(find(port))
    for running in running_fleets.running():
        if address in {"auto", running.ray_address}:
            return attached(running)
    chosen = _only_cluster() if address == "auto" else address
    absence = FleetNotFound(
        f"no Ray cluster answers at {chosen}",
        "Run this on a node of the cluster; if it requires a token, set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH.",
    )
    _check_listener(chosen, absence)
    return _driver(chosen, absence)


def _check_listener(address: str, absence: FleetNotFound) -> None:
    """Raise `absence` unless something listens there; Ray itself would retry for minutes."""
    try:
        socket.create_connection(_host_and_port(address), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise absence from error


def _only_cluster() -> str:
    """Resolve `auto` when no fleet runs here. Raises FleetNotFound unless exactly one cluster
    has a node here."""
    named = os.environ.get("RAY_ADDRESS", "auto")
    if named not in {"", "auto"}:
        return named
    addresses = programs.ray_addresses()
    if len(addresses) == 1:
        return addresses[0]
    if addresses:
        raise FleetNotFound(
            f"several Ray clusters have a node on this machine: {', '.join(addresses)}",
            "Select one with --address.",
        )
    raise FleetNotFound("no Ray cluster has a node on this machine", "Start one, or set --address.")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@contextmanager
def _driver(address: str, absence: FleetNotFound) -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    from qwenfleet.deployments.registry import client

    try:
        try:
            ray.init(
                address=address,
                namespace=client.NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except ConnectionError:
            raise
        except Exception as error:  # other versions, or a bare one at Ray's own time limit
            raise FleetNotFound(
                f"Ray cannot join {address}: {one_line(error)}",
                "Use the cluster's Python environment, and see that its head answers.",
            ) from error
        yield
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
        raise absence from error
    finally:
        if ray.is_initialized():
            ray.shutdown()
