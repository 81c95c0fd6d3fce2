"""TCP listeners of this machine, and which of them other machines can reach."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import psutil

from qwenfleet.cluster.config.fleet import GatewayConfig
from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.local import fleets as running_fleets
from qwenfleet.cluster.local import ports, programs
from qwenfleet.cluster.local.programs import NO_OWNER, Owner, Program


@dataclass(frozen=True)
class Listener:
    """A listening socket and, if this user may see it, the process that owns it."""

    address: str
    port: int
    pid: int | None = None
    program: str = "a program that this user may not see"
    user: str = ""
    owner: Owner = NO_OWNER
    auth_mode: str = ""
    """RAY_AUTH_MODE of its Ray cluster; empty if unset or unreadable."""
    is_keyless_http: bool = False
    """True if a fleet of this user answers HTTP here without an API key."""

    @property
    def is_local(self) -> bool:
        """True if only this machine can connect."""
        address = ip_address(self.address.partition("%")[0])
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@dataclass(frozen=True)
class Ports:
    """The default port, and whether it is free."""

    host: str
    port: int
    refusal: tuple[str, str] | None
    """Problem and remedy if a server cannot listen on the default port."""


@dataclass(frozen=True)
class Listening:
    """Every listener, sorted by port."""

    listeners: tuple[Listener, ...]
    own: Owner = NO_OWNER
    """The Ray cluster that this process belongs to, on a cluster's node."""


def read(visitor: int = 0) -> Listening:
    """Read all listeners except those of `visitor`, the `doctor` command on a cluster's node.
    Raises psutil.Error if the kernel refuses."""
    sockets = [
        (connection.laddr.ip, connection.laddr.port, connection.pid or 0)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.pid != visitor
    ]
    known = programs.read({os.getpid(), *(pid for _, _, pid in sockets)})
    fleets = running_fleets.running()
    owners = {pid: programs.owner(pid, known, fleets) for pid in known}
    auth_modes = _auth_modes(known, owners)
    keyless = {(Owner(f.name, f.pid), f.port) for f in fleets if not f.has_keys}
    found = []
    for address, port, pid in sockets:
        program = known.get(pid)
        if program is None:  # another user's, or it has ended
            found.append(Listener(address, port))
            continue
        found.append(
            Listener(
                address=address,
                port=port,
                pid=pid,
                program=program.name,
                user=program.user,
                owner=owners[pid],
                auth_mode=auth_modes.get(owners[pid], ""),
                is_keyless_http=(owners[pid], port) in keyless,
            )
        )
    found.sort(key=lambda listener: (listener.port, listener.address))
    return Listening(tuple(found), owners.get(os.getpid(), NO_OWNER))


def read_ports() -> Ports:
    """Test the default port by binding it for a moment."""
    gateway = GatewayConfig()
    try:
        ports.check_port(gateway.host, gateway.port)
    except MachineError as error:
        return Ports(gateway.host, gateway.port, (error.problem, error.remedy))
    return Ports(gateway.host, gateway.port, None)


def _auth_modes(known: Mapping[int, Program], owners: Mapping[int, Owner]) -> dict[Owner, str]:
    """RAY_AUTH_MODE of each Ray cluster, from any of its processes that is readable."""
    modes: dict[Owner, str] = {}
    for pid, owner in owners.items():
        if owner.is_ray:
            modes[owner] = modes.get(owner) or known[pid].auth_mode
    return modes
