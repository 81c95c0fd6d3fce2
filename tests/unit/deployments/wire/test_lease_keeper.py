"""Leases are renewed from a process that a busy gateway cannot stop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio

from qwenfleet.deployments.wire import lease_keeper, lease_pump
from qwenfleet.deployments.wire.lease_keeper import LeaseKeeper, Renewal

FRAME = b"8 bytes."
LEASE_S = 0.15
STALL_S = 1.5
"""Ten leases."""


class Engine:
    """An engine's port. What pumps send waits in the kernel, until a test counts it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()
        self._connections: list[socket.socket] = []
        self._received = 0

    @property
    def renewals(self) -> int:
        """Frames that have come so far. Does not wait."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                break
            connection.setblocking(False)
            self._connections.append(connection)
        for connection in self._connections:
            with suppress(BlockingIOError):
                self._received += len(connection.recv(1 << 20))
        return self._received // len(FRAME)

    def reset(self) -> None:
        """Close the connections, as a network does that has dropped them."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def close(self) -> None:
        self.reset()
        self._listener.close()


@pytest.fixture
def new_engine() -> Iterator[Callable[[], Engine]]:
    engines: list[Engine] = []

    def new() -> Engine:
        engines.append(Engine())
        return engines[-1]

    yield new
    for engine in engines:
        engine.close()


@pytest_asyncio.fixture
async def keeper(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LeaseKeeper]:
    monkeypatch.setattr(lease_keeper, "LOOK_S", 0.05)
    keeper = LeaseKeeper()
    running = asyncio.create_task(keeper.run())
    yield keeper
    running.cancel()
    await asyncio.wait({running})


def keep(keeper: LeaseKeeper, engine: Engine, session: str = "gw-a-1") -> None:
    keeper.keep(Renewal(session, engine.host, engine.port, FRAME, LEASE_S))


def run_python() -> None:
    """Hold the event loop, as validation of a large request does."""
    until = time.monotonic() + STALL_S
    while time.monotonic() < until:
        pass


def hold_the_interpreter() -> None:
    """Run one C call that lets no thread of this process run: 2**n steps of backtracking."""
    for length in range(20, 40):
        began_at = time.monotonic()
        assert re.match("(a+)+b", "a" * length) is None
        if time.monotonic() - began_at > STALL_S / 3:
            break


@pytest.mark.parametrize("stall", [run_python, hold_the_interpreter])
async def test_a_lease_is_renewed_while_the_gateway_is_busy(
    keeper: LeaseKeeper, new_engine: Callable[[], Engine], eventually: Callable[..., Any],
    stall: Callable[[], None],
) -> None:  # fmt: skip
    engine = new_engine()
    keep(keeper, engine)
    await eventually(lambda: engine.renewals)
    before, began_at = engine.renewals, time.monotonic()
    stall()
    renewals = engine.renewals - before
    leases = (time.monotonic() - began_at) / LEASE_S
    assert leases > 3
    assert renewals > leases / 3, "three times per lease, on a machine that is not busy"


async def test_a_dropped_lease_is_renewed_no_more(
    keeper: LeaseKeeper, new_engine: Callable[[], Engine], eventually: Callable[..., Any]
) -> None:
    dropped, kept = new_engine(), new_engine()
    keep(keeper, dropped, "gw-a-1")
    keep(keeper, kept, "gw-a-2")
    await eventually(lambda: dropped.renewals and kept.renewals)
    keeper.drop("gw-a-1")
    await asyncio.sleep(LEASE_S)
    before, others = dropped.renewals, kept.renewals
    await eventually(lambda: kept.renewals > others + 5)
    assert dropped.renewals == before


async def test_a_lost_connection_is_opened_again(
    keeper: LeaseKeeper, new_engine: Callable[[], Engine], eventually: Callable[..., Any]
) -> None:
    engine = new_engine()
    keep(keeper, engine)
    await eventually(lambda: engine.renewals)
    engine.reset()
    before = engine.renewals
    await eventually(lambda: engine.renewals > before)


async def test_another_pump_takes_the_leases_of_one_that_was_killed(
    keeper: LeaseKeeper, new_engine: Callable[[], Engine], eventually: Callable[..., Any]
) -> None:
    engine = new_engine()
    keep(keeper, engine)
    await eventually(lambda: engine.renewals)
    assert keeper.pid is not None
    killed = keeper.pid
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: keeper.pid not in (None, killed))
    before = engine.renewals
    await eventually(lambda: engine.renewals > before)


async def test_a_pump_that_does_not_read_is_replaced(
    keeper: LeaseKeeper, new_engine: Callable[[], Engine], eventually: Callable[..., Any]
) -> None:
    engine = new_engine()
    keep(keeper, engine)
    await eventually(lambda: engine.renewals)
    assert keeper.pid is not None
    stopped = keeper.pid
    os.kill(stopped, signal.SIGSTOP)
    for number in range(8_000):  # more than the pipe holds
        keeper.keep(Renewal(f"gw-a-{number}", engine.host, engine.port, FRAME, 3600))
        keeper.drop(f"gw-a-{number}")
    keep(keeper, engine)
    await eventually(lambda: keeper.pid not in (None, stopped))
    before = engine.renewals
    await eventually(lambda: engine.renewals > before)


def test_a_pump_renews_only_while_its_gateway_runs_and_ends_with_it(
    new_engine: Callable[[], Engine],
) -> None:
    engine = new_engine()
    program = (
        "import asyncio, os\n"
        "from qwenfleet.deployments.wire.lease_keeper import LeaseKeeper, Renewal\n"
        "async def main():\n"
        "    keeper = LeaseKeeper()\n"
        f"    where = ('{engine.host}', {engine.port})\n"
        f"    keeper.keep(Renewal('gw-a-1', *where, {FRAME!r}, {LEASE_S}))\n"
        "    running = asyncio.create_task(keeper.run())\n"
        "    while keeper.pid is None:\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(keeper.pid, flush=True)\n"
        "    await running\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        pump = int(gateway.stdout.readline())
        wait_for(lambda: engine.renewals > 0)
        gateway.send_signal(signal.SIGSTOP)
        wait_for(lambda: not lease_pump.runs(gateway.pid))
        time.sleep(LEASE_S)
        before = engine.renewals
        time.sleep(3 * LEASE_S)
        assert engine.renewals == before, "a stopped gateway"
        gateway.send_signal(signal.SIGCONT)
        wait_for(lambda: engine.renewals > before)
        gateway.kill()
    wait_for(lambda: not lease_pump.runs(pump))


def wait_for(is_true: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
