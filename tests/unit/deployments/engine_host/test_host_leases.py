"""Engines stop abandoned attempts: leases, closed connections, and one session for each id."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from qwenfleet.deployments.wire import connection
from qwenfleet.deployments.wire.frames import Abort, Alive, Lease, Refused, Renew, Welcome

FOREVER = 1_000_000


async def test_a_closed_connection_stops_the_work_of_that_gateway_only(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER)
    a, b = await dial(engine.record, "gw-a"), await dial(engine.record, "gw-b")
    a.submit("x"), a.submit("y")
    kept = b.submit("z")
    await eventually(lambda: len(engine.core.active) == 3)
    a.connection.close()
    await eventually(lambda: engine.core.active == {kept})
    assert await b.tokens(kept, 3)


class Ears:
    """What a machine acknowledges of the connections to it, in place of its kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.are_deaf = False
        self._real = connection._unacknowledged
        self._last: dict[Any, int] = {}
        monkeypatch.setattr(connection.Connection, "acknowledged_bytes", property(self._count))

    def _count(self, wire: connection.Connection) -> int:
        """Return the number, which stays as it is while the machine is deaf."""
        if not self.are_deaf or wire not in self._last:
            self._last[wire] = wire.moved_bytes - self._real(wire._writer)
        return self._last[wire]


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> Ears:
    return Ears(monkeypatch)


async def heartbeats(peer: Any, count: int = 3) -> None:
    for _ in range(count):
        await peer.receive(Alive)


async def test_a_session_ends_when_its_lease_has_lapsed_and_its_connection_is_stuck(
    serve_engine: Any, dial: Any, eventually: Any, clock: Any, ears: Ears
) -> None:
    engine = await serve_engine(num_tokens=FOREVER, clock=clock)
    peer = await dial(engine.record)
    await peer.tokens(peer.submit("x"), 1)
    ears.are_deaf = True
    await heartbeats(peer)
    clock.advance(29.9)
    await heartbeats(peer)
    assert engine.core.active
    clock.advance(0.2)
    await eventually(lambda: not engine.core.active)
    await peer.until_closed()


async def test_a_gateway_whose_machine_acknowledges_keeps_its_attempts_without_a_lease(
    serve_engine: Any, dial: Any, clock: Any
) -> None:
    """It stands still, and goes on where it was."""
    engine = await serve_engine(num_tokens=FOREVER, clock=clock)
    peer = await dial(engine.record)
    key = peer.submit("x")
    await peer.tokens(key, 1)
    for _ in range(4):
        clock.advance(29)
        await heartbeats(peer)
    assert engine.core.active == {key}
    assert await peer.tokens(key, 1)


async def test_a_connection_that_nobody_reads_is_stuck_once_its_machine_takes_no_more(
    serve_engine: Any, eventually: Any, dial: Any, clock: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER, clock=clock)
    small = socket.socket()
    small.setblocking(False)
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer = await dial(engine.record, socket=small)
    peer.submit("x")
    await eventually(lambda: engine.core.active)
    peer.connection._reader._transport.pause_reading()
    session = engine.host._sessions["gw-a"]
    seen: list[int] = []

    def is_stuck() -> bool:
        seen.append(session.connection.acknowledged_bytes)
        return len(seen) > 100 and len(set(seen[-100:])) == 1

    await eventually(is_stuck)
    assert session.connection.backlog_bytes == 0, "the kernel took all that was sent"
    await asyncio.sleep(0.1)  # a heartbeat sees it too
    clock.advance(31)
    await eventually(lambda: not engine.core.active)


@pytest.mark.parametrize("how", ["frames", "pump"])
async def test_a_gateway_that_renews_its_lease_keeps_its_attempts(
    serve_engine: Any, dial: Any, clock: Any, ears: Ears, how: str
) -> None:
    engine = await serve_engine(num_tokens=FOREVER, clock=clock)
    silent, leasing = [await dial(engine.record, name) for name in ("gw-silent", "gw-leasing")]
    (welcome,) = [frame for frame in leasing.seen if isinstance(frame, Welcome)]
    pump = await dial(engine.record, greets=False)
    lapsing, kept = silent.submit("x"), leasing.submit("y")
    await leasing.tokens(kept, 1)
    ears.are_deaf = True
    async with asyncio.timeout(10):
        while lapsing in engine.core.active:
            clock.advance(1)
            if how == "pump":
                pump.connection.send(Renew("gw-leasing", welcome.lease_key))
            else:
                leasing.connection.send(Lease())
            await heartbeats(leasing, 1)
            await asyncio.sleep(0.005)
    assert engine.core.active == {kept}
    assert await leasing.tokens(kept, 1)


@pytest.mark.parametrize(("session", "key"), [("gw-a", b""), ("gw-a", b"x" * 16), ("gw-b", None)])
async def test_a_lease_is_renewed_only_with_its_own_key(
    serve_engine: Any, dial: Any, clock: Any, session: str, key: bytes | None
) -> None:
    engine = await serve_engine(num_tokens=FOREVER, clock=clock)
    owner = await dial(engine.record, "gw-a")
    (welcome,) = [frame for frame in owner.seen if isinstance(frame, Welcome)]
    clock.advance(10)
    stranger = await dial(engine.record, greets=False)
    stranger.connection.send(Renew(session, welcome.lease_key if key is None else key))
    await stranger.until_closed()
    assert engine.host._sessions["gw-a"].leased_until < clock() + 30


async def test_a_lease_pump_is_let_go_when_its_session_has_ended(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    engine = await serve_engine()
    peer = await dial(engine.record)
    (welcome,) = [frame for frame in peer.seen if isinstance(frame, Welcome)]
    pump = await dial(engine.record, greets=False)
    pump.connection.send(Renew("gw-a", welcome.lease_key))
    peer.connection.close()
    await eventually(lambda: not engine.host._sessions)
    pump.connection.send(Renew("gw-a", welcome.lease_key))
    await pump.until_closed()


async def test_an_open_session_cannot_be_taken_by_whoever_knows_the_secret(
    serve_engine: Any, dial: Any
) -> None:
    engine = await serve_engine(tokens=tuple(range(200)), num_tokens=200)
    owner = await dial(engine.record, "gw-a-1")
    key = owner.submit("x")
    tokens = await owner.tokens(key, 3)
    intruder = await dial(engine.record, "gw-a-1", greets=False)
    refused = await intruder.greet()
    assert isinstance(refused, Refused)
    assert "open already" in refused.reason
    intruder.connection.send(Abort([key]))
    await intruder.until_closed()
    tokens += await owner.tokens(key)
    assert tokens == list(range(200))
    assert engine.host.orphans == 0


async def test_a_gateway_connects_again_while_its_earlier_session_is_still_open(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    """After a black hole, only the lease shows the host that the first connection is lost."""
    engine = await serve_engine(num_tokens=FOREVER)
    before = await dial(engine.record, "gw-a-1")
    await before.tokens(before.submit("x"), 1)
    after = await dial(engine.record, "gw-a-2")
    again = after.submit("x")
    assert await after.tokens(again, 3)
    before.connection.close()
    await eventually(lambda: engine.core.active == {again})


async def test_a_session_id_is_free_again_when_its_session_has_ended(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=3)
    peer = await dial(engine.record)
    assert len(await peer.tokens(peer.submit("x"))) == 3
    peer.connection.close()
    await eventually(lambda: not engine.host._sessions)
    again = await dial(engine.record)
    assert len(await again.tokens(again.submit("x"))) == 3


async def test_attempts_that_end_with_the_engine_are_not_orphans(
    serve_engine: Any, dial: Any
) -> None:
    dying = await serve_engine(num_tokens=FOREVER, fail_after_tokens=3)
    peer = await dial(dying.record)
    peer.submit("x")
    await peer.until_closed()
    assert dying.host.orphans == 0
    leaving = await serve_engine(engine="engine-2", num_tokens=FOREVER)
    peer = await dial(leaving.record)
    await peer.tokens(peer.submit("x"), 1)
    await leaving.host.drain("spot notice", 0.0)
    await peer.until_closed()
    assert leaving.host.orphans == 0
    assert not leaving.core.active
