"""Engines stop abandoned attempts: leases, closed connections, and one session for each id."""

from __future__ import annotations

import asyncio
from typing import Any

from qwenfleet.deployments.wire.frames import Abort, Lease, Outputs, Refused

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


async def test_an_expired_lease_stops_the_attempts_and_closes_the_connection(
    serve_engine: Any, dial: Any, eventually: Any, clock: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER, clock=clock)
    peer = await dial(engine.record)
    await peer.tokens(peer.submit("x"), 1)
    clock.advance(29.9)
    await peer.receive(Outputs)
    assert engine.core.active
    clock.advance(0.2)
    await eventually(lambda: not engine.core.active)
    await peer.until_closed()


async def test_a_gateway_that_renews_its_lease_keeps_its_attempts(
    serve_engine: Any, dial: Any, clock: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER, clock=clock)
    silent, leasing = [await dial(engine.record, name) for name in ("gw-silent", "gw-leasing")]
    lapsing, kept = silent.submit("x"), leasing.submit("y")
    await leasing.tokens(kept, 1)
    async with asyncio.timeout(10):
        while lapsing in engine.core.active:
            clock.advance(1)
            leasing.connection.send(Lease())
            await leasing.tokens(kept, 1)
            await asyncio.sleep(0.005)
    assert engine.core.active == {kept}
    assert await leasing.tokens(kept, 1)


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
