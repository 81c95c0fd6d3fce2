"""Checks for free ports on this machine. They ask the kernel by binding."""

import errno
import random
import socket
from contextlib import ExitStack, suppress

import psutil

from qwenfleet.cluster.errors import MachineError


def check_port(host: str, port: int) -> None:
    """Raise `MachineError` unless a server could listen on `host` and `port` now."""
    try:
        with _bound(host, port):
            return
    except (socket.gaierror, UnicodeError) as error:
        raise MachineError(
            f"host '{host}' cannot be resolved to an address", "Choose another with --host."
        ) from error
    except OSError as error:
        raise _port_error(host, port, error) from error


def free_ports(count: int, host: str) -> list[int]:
    """Find `count` different free TCP ports on `host`; another process may still take one."""
    with ExitStack() as held:
        sockets = [held.enter_context(_bound(host, 0)) for _ in range(count)]
        return [bound.getsockname()[1] for bound in sockets]


def free_port_range(count: int, host: str) -> range:
    """Find `count` consecutive free ports, below those that the kernel assigns."""
    starts = range(10_000, 30_000 - count, count)
    for start in random.sample(starts, len(starts)):
        with ExitStack() as stack, suppress(OSError):
            for port in range(start, start + count):
                listener = stack.enter_context(socket.socket())
                listener.bind((host, port))
            return range(start, start + count)
    raise MachineError(
        f"host {host} does not have {count} consecutive free ports",
        "Stop programs that listen on many ports.",
    )


def _bound(host: str, port: int) -> socket.socket:
    """A socket bound like a server's: an old connection in TIME_WAIT does not block the port."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1)
    except OSError:
        bound.close()
        raise
    return bound


def _port_error(host: str, port: int, error: OSError) -> MachineError:
    if error.errno == errno.EADDRINUSE:
        holder = _holder(host, port)
        by = f" by {holder}" if holder else ""
        return MachineError(
            f"port {port} on {host} is in use{by}", "Stop it, or choose another port with --port."
        )
    if error.errno == errno.EACCES:
        return MachineError(
            f"port {port} requires privileges that this user does not have",
            "Choose a port above 1023 with --port.",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return MachineError(
            f"host '{host}' is not an address of this machine", "Choose another with --host."
        )
    return MachineError(
        f"port {port} on {host} cannot be used: {error.strerror}", "Choose another with --port."
    )


def _holder(host: str, port: int) -> str | None:
    """Name and pid of the process that holds `port` on `host`; None if this user may not see it."""
    every = {"0.0.0.0", "::"}
    try:
        wanted = {str(info[4][0]) for info in socket.getaddrinfo(host, port)}
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status != psutil.CONN_LISTEN or not address or address.port != port:
                continue
            is_holder = bool(wanted & every) or address.ip in wanted | every
            if is_holder and connection.pid is not None:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        return None
    return None
