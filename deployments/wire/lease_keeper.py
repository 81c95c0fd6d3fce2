"""LeaseKeeper: keeps a gateway's leases from a process of its own, which no busy loop can stop.

`lease_pump` is that process, and says why it is none of this process's threads. A pipe joins the
two: the pump ends with the gateway, and the keeper starts another one if it ends by itself. Until
then the links renew their leases themselves.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from qwenfleet.cluster.config.tls import TlsConfig

logger = logging.getLogger(__name__)

PUMP: Final = Path(__file__).with_name("lease_pump.py")
LOOK_S: Final = 1.0
"""Time between two looks at the pump, and until another one is started."""
PIPE_BYTES: Final = 2**20
"""Room for the leases of 3,000 engines, which a new pump gets at once."""


@dataclass(frozen=True)
class Renewal:
    """How to renew the lease of one session."""

    session: str
    host: str
    port: int
    frame: bytes
    """What to send, three times per lease."""
    lease_s: float
    tls: TlsConfig | None = None


class Leases(Protocol):
    """Where a link leaves its lease, until it drops it."""

    def keep(self, renewal: Renewal) -> None: ...

    def drop(self, session: str) -> None: ...


class NoKeeper:
    """Stands in where links renew their leases themselves."""

    def keep(self, renewal: Renewal) -> None: ...

    def drop(self, session: str) -> None: ...


NO_KEEPER: Final = NoKeeper()


class LeaseKeeper:
    """Runs a lease pump. Leases may also come while none runs."""

    def __init__(self) -> None:
        self._leases: dict[str, dict[str, Any]] = {}
        self._pump: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The pump's process id; None while none runs."""
        return None if self._pump is None else self._pump.pid

    def keep(self, renewal: Renewal) -> None:
        command = self._leases[renewal.session] = {
            "keep": renewal.session,
            "host": renewal.host,
            "port": renewal.port,
            "frame": base64.b64encode(renewal.frame).decode(),
            "every_s": renewal.lease_s / 3,
            "patience_s": renewal.lease_s,
            "tls": None if renewal.tls is None else renewal.tls.model_dump(),
        }
        self._tell(command)

    def drop(self, session: str) -> None:
        if self._leases.pop(session, None) is not None:
            self._tell({"drop": session})

    async def run(self) -> None:
        """Keep a pump running until this is canceled."""
        while True:
            try:
                self._pump = await asyncio.to_thread(_start)
            except OSError as error:
                logger.warning("lease pump did not start", extra={"reason": str(error)})
            else:
                await self._follow(self._pump)
            await asyncio.sleep(LOOK_S)

    async def _follow(self, pump: subprocess.Popen[bytes]) -> None:
        """Give all leases to a pump, and wait for its end."""
        for lease in self._leases.values():
            self._tell(lease)
        try:
            while pump.poll() is None:  # noqa: ASYNC110 # a process sets no event
                await asyncio.sleep(LOOK_S)
            logger.warning("lease pump ended", extra={"code": pump.returncode})
        finally:
            self._pump = None
            await asyncio.to_thread(_end, pump)

    def _tell(self, command: dict[str, Any]) -> None:
        """Send a command. A pump that does not read is replaced."""
        pump = self._pump
        if pump is None or pump.stdin is None:
            return
        try:
            # One write: the kernel takes up to PIPE_BUF (4 KB) whole or not at all.
            os.write(pump.stdin.fileno(), json.dumps(command).encode() + b"\n")
        except OSError as error:
            logger.warning("lease pump does not read", extra={"reason": str(error)})
            pump.kill()


def _start() -> subprocess.Popen[bytes]:
    pump = subprocess.Popen(
        # Without the environment (-I) and without site-packages (-S).
        [sys.executable, "-I", "-S", str(PUMP), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pipesize=PIPE_BYTES,
    )
    assert pump.stdin is not None
    os.set_blocking(pump.stdin.fileno(), False)
    return pump


def _end(pump: subprocess.Popen[bytes]) -> None:
    pump.kill()
    with pump:  # closes its pipe and waits for it
        pass
