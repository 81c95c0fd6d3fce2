"""Who listens for TCP connections on this machine, and who of them can be reached from others."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import psutil

from qwenfleet.cluster import machine, programs, run_file
from qwenfleet.cluster.config import GatewayConfig
from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.programs import NOBODY, Owner, Program
from qwenfleet.cluster.run_file import RunningFleet

FLEET_PORTS = 106
"""In a row, for HAProxy, Ray's metrics and the gateways: what `ray_environment` looks for."""
OWN_PORTS = range(10_000, 30_000)
"""Where it looks: see `machine.free_port_range`."""


@dataclass(frozen=True)
class Listener:
    """A listening socket, and the process that holds it as far as this user may see it."""

    address: str
    port: int
    pid: int | None = None
    program: str = "a program that this user may not see"
    user: str = ""
    owner: Owner = NOBODY
    auth_mode: str = ""
    """RAY_AUTH_MODE of its Ray cluster; empty when it has none, or cannot be seen."""
    counters: str = ""
    """Whose counters the port shows to anyone; empty when it is no such port."""
    has_keys: bool | None = None
    """Whether its fleet's HTTP asks for an API key; None when that cannot be seen."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        address = ip_address(self.address.partition("%")[0])
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@dataclass(frozen=True)
class Ports:
    """Whether a fleet finds the ports that it needs."""

    host: str
    port: int
    refusal: tuple[str, str] | None
    """When a server cannot listen at that default address: what is wrong, and the way out."""
    range_refusal: tuple[str, str] | None
    """The same of the ports that a fleet looks for."""
    ephemeral: range
    """What the kernel gives to outgoing connections."""


@dataclass(frozen=True)
class Listening:
    """Every listener, sorted by port."""

    listeners: tuple[Listener, ...]
    own: Owner = NOBODY
    """The Ray cluster that this very process belongs to, as on a cluster's node."""


def read(visitor: int = 0) -> Listening:
    """Leaves out the process that asks, on a cluster's node. Raises psutil.Error where the kernel
    does not tell."""
    sockets = [
        (connection.laddr.ip, connection.laddr.port, connection.pid or 0)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.pid != visitor
    ]
    known = programs.read({os.getpid(), *(pid for _, _, pid in sockets)})
    fleets = run_file.running()
    owners = {pid: programs.owner(pid, known, fleets) for pid in known}
    clusters = _clusters(known, owners, fleets)
    found = []
    for address, port, pid in sockets:
        program = known.get(pid)
        if program is None:
            found.append(Listener(address, port))
            continue
        cluster = clusters.get(owners[pid], _Cluster())
        found.append(
            Listener(
                address=address,
                port=port,
                pid=pid,
                program=program.name,
                user=program.user,
                owner=owners[pid],
                auth_mode=cluster.auth_mode,
                counters=cluster.counters.get(port, ""),
                has_keys=cluster.has_keys,
            )
        )
    found.sort(key=lambda listener: (listener.port, listener.address))
    return Listening(tuple(found), owners.get(os.getpid(), NOBODY))


def read_ports() -> Ports:
    """Tries the ports by binding them for a moment."""
    gateway = GatewayConfig()
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return Ports(
        host=gateway.host,
        port=gateway.port,
        refusal=_refusal(lambda: machine.check_port(gateway.host, gateway.port)),
        range_refusal=_refusal(lambda: machine.free_port_range(FLEET_PORTS, "0.0.0.0")),
        ephemeral=range(int(low), int(high) + 1),
    )


@dataclass
class _Cluster:
    """What the processes of one Ray cluster were started with, put together."""

    auth_mode: str = ""
    counters: dict[int, str] = field(default_factory=dict)
    has_keys: bool | None = None


def _clusters(
    known: Mapping[int, Program], owners: Mapping[int, Owner], fleets: Sequence[RunningFleet]
) -> dict[Owner, _Cluster]:
    clusters: dict[Owner, _Cluster] = defaultdict(_Cluster)
    for pid, owner in owners.items():
        if owner.is_ray:
            clusters[owner].auth_mode = clusters[owner].auth_mode or known[pid].auth_mode
            clusters[owner].counters |= known[pid].counters
    for fleet in fleets:
        cluster = clusters[Owner(fleet.name, fleet.pid)]
        cluster.counters[fleet.metrics_port] = "Ray's metrics"
        cluster.has_keys = fleet.has_keys
    return clusters


def _refusal(check: Callable[[], object]) -> tuple[str, str] | None:
    try:
        check()
    except MachineError as error:
        return error.problem, error.remedy
    return None
