"""Attach: a command's way into the Ray cluster of a fleet that runs already."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from qwenfleet.cluster.errors import FleetNotFound
from qwenfleet.cluster.local import fleets as run_file
from qwenfleet.cluster.local import programs
from qwenfleet.cluster.local.fleets import RunningFleet

CONNECT_TIMEOUT_S: Final = 5.0


def find(port: int | None = None, name: str | None = None) -> RunningFleet:
    """The newest fleet of this user on this machine, or the one at `port` or called `name`. Raises
    FleetNotFound."""
    fleets = run_file.running()
    chosen = [
        running
        for running in fleets
        if port in (None, running.port) and name in (None, running.name)
    ]
    if chosen:
        return chosen[0]
    if fleets and name is not None:
        names = ", ".join(f"'{running.name}' at {running.url}" for running in fleets)
        raise FleetNotFound(f"no fleet of yours called '{name}' runs there", f"These do: {names}.")
    if fleets:
        urls = ", ".join(running.url for running in fleets)
        raise FleetNotFound(f"no fleet of yours runs at port {port}", f"These do: {urls}.")
    raise FleetNotFound(
        "no fleet of yours runs on this machine", "Start one with `qwenfleet serve`."
    )


def attached(running: RunningFleet) -> AbstractContextManager[None]:
    """Inside, this process is a driver of the fleet's Ray cluster. Raises FleetNotFound when the
    cluster, or what is asked of it inside, does not answer."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = running.ray_token_path
    return _driver(
        running.ray_address,
        FleetNotFound(
            f"the fleet of process {running.pid} does not answer at {running.ray_address}",
            "It may still be starting, or be going down; try again in a moment.",
        ),
    )


def cluster(port: int | None, address: str | None) -> AbstractContextManager[None]:
    """Likewise for the fleet at `port` or, with an address, any Ray cluster that this machine is a
    node of; `auto` is the newest fleet here or, without one, the cluster that has a raylet here.

    For a cluster that is no fleet's the token is the one that Ray finds for this user.
    """
    if address is None:
        return attached(find(port))
    for running in run_file.running():
        if address in {"auto", running.ray_address}:
            return attached(running)
    chosen = _only_cluster() if address == "auto" else address
    absence = FleetNotFound(
        f"no Ray cluster answers at {chosen}",
        "Run this on a node of the cluster; when it asks for a token, set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH.",
    )
    try:
        socket.create_connection(_host_and_port(chosen), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:  # Ray itself would try for minutes
        raise absence from error
    return _driver(chosen, absence)


def _only_cluster() -> str:
    """What `auto` means where no fleet runs. Raises FleetNotFound unless it is one cluster."""
    named = os.environ.get("RAY_ADDRESS", "auto")
    if named not in {"", "auto"}:
        return named
    addresses = programs.ray_addresses()
    if len(addresses) == 1:
        return addresses[0]
    if addresses:
        raise FleetNotFound(
            f"several Ray clusters have a node here: {', '.join(addresses)}",
            "Name one with --address.",
        )
    raise FleetNotFound("no Ray cluster has a node here", "Start one, or name it with --address.")


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
        except RuntimeError as error:  # of another version of Ray or Python
            reason = " ".join(str(error).split())[:300]
            raise FleetNotFound(
                f"Ray does not join {address}: {reason}", "Use the cluster's own environment."
            ) from error
        yield
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
        raise absence from error
    finally:
        if ray.is_initialized():
            ray.shutdown()
