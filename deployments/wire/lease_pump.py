"""Lease pump: the program of a small process that renews a gateway's leases.

A gateway's own threads stand still while a C call holds its interpreter: decoding 1M tokens does
for seconds, a regular expression may for ever. This process shares nothing with it. It renews while
the gateway's process exists and is not stopped, so a lease says that the process lives, not that it
is quick; Serve replaces a gateway whose event loop stands for long.

It imports the standard library only, and not this project: so it takes 12 MB and starts in 0.1 s.
Its argument is the gateway's process id. It gets one JSON object per line, `{"keep": session,
"host": …, "port": …, "frame": base64, "every_s": …, "patience_s": …, "tls": null or the names of
the `certificate`, its `key` and the `authority`}` or `{"drop": session}`, and ends with its input.
"""

import base64
import json
import signal
import socket
import sys
import threading
from typing import Any, Final

STOPPED: Final = frozenset("TtZX")
"""States of a process that runs no code: stopped, traced, dead (proc(5), `stat`)."""


def runs(pid: int) -> bool:
    """Whether a process can run code."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            state = stat.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return False
    return state not in STOPPED


def connect(lease: dict[str, Any]) -> socket.socket:
    """Open a connection. Raises OSError."""
    patience_s: float = lease["patience_s"]
    plain = socket.create_connection((lease["host"], lease["port"]), patience_s)
    # Without it, the kernel tries again for minutes on a connection that a network has dropped.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience_s * 1000))
    return encrypted(plain, lease["tls"]) if lease["tls"] else plain


def encrypted(plain: socket.socket, files: dict[str, str]) -> socket.socket:
    """Wrap a connection as `tls.client_context` does, with what the files hold now."""
    import ssl  # 4 MB, only where it is used

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(files["authority"])
    context.load_cert_chain(files["certificate"], files["key"])
    return context.wrap_socket(plain)


class Renewals(threading.Thread):
    """Renews one lease over a connection of its own, which it opens again when it is lost."""

    def __init__(self, lease: dict[str, Any], gateway_pid: int) -> None:
        super().__init__(daemon=True)
        self._lease = lease
        self._gateway_pid = gateway_pid
        self._is_over = threading.Event()

    def end(self) -> None:
        self._is_over.set()

    def run(self) -> None:
        while not self._is_over.is_set():
            try:
                with connect(self._lease) as connection:
                    self._renew(connection)
            except OSError:
                self._is_over.wait(self._lease["every_s"])

    def _renew(self, connection: socket.socket) -> None:
        frame = base64.b64decode(self._lease["frame"])
        while not self._is_over.is_set():
            if runs(self._gateway_pid):
                connection.sendall(frame)
            self._is_over.wait(self._lease["every_s"])


def main() -> None:
    """Follow the commands until the gateway closes its end."""
    for kind in (signal.SIGINT, signal.SIGTERM):  # sent to the gateway, which may drain for long
        signal.signal(kind, signal.SIG_IGN)
    gateway_pid = int(sys.argv[1])
    leases: dict[str, Renewals] = {}
    for line in sys.stdin.buffer:
        command = json.loads(line)
        ended = leases.pop(command.get("drop") or command["keep"], None)
        if ended is not None:
            ended.end()
        if "keep" in command:
            leases[command["keep"]] = Renewals(command, gateway_pid)
            leases[command["keep"]].start()


if __name__ == "__main__":
    main()
