"""Engines stop abandoned attempts: leases, closed connections and reconnecting gateways."""

from __future__ import annotations

import asyncio
from typing import Any

from qwenfleet.deployments.wire.frames import Hello, Lease, Outputs, Welcome

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


async def test_a_reconnected_gateway_keeps_the_attempts_that_it_owns(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    engine = await serve_engine(tokens=tuple(range(200)), num_tokens=200)
    before = await dial(engine.record)
    kept = before.submit("kept")
    before.submit("abandoned")
    await before.tokens(kept, 3)
    after = await dial(engine.record, owned=[kept, "one that this engine never ran.0@gw-a"])
    await eventually(lambda: engine.core.active == {kept})
    await before.until_closed()
    late = [o for f in before.seen if isinstance(f, Outputs) for o in f.outputs]
    tokens = [t for o in late if o.wire_id == kept for t in o.token_ids]
    tokens += await after.tokens(kept)
    assert tokens == list(range(200))
    assert all(o.wire_id == kept for f in after.seen if isinstance(f, Outputs) for o in f.outputs)


async def test_the_old_connection_of_a_reconnected_gateway_ends_no_attempts(
    serve_engine: Any, dial: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER)
    before = await dial(engine.record)
    kept = before.submit("kept")
    await before.tokens(kept, 1)
    after = await dial(engine.record, owned=[kept])
    await before.until_closed()
    before.connection.close()
    new = after.submit("new")
    assert await after.tokens(new, 3)
    assert engine.core.active == {kept, new}


async def test_a_gateway_cannot_claim_the_work_of_another(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER)
    a = await dial(engine.record, "gw-a")
    key = a.submit("x")
    await a.tokens(key, 1)
    await dial(engine.record, "gw-b", owned=[key])
    b = await dial(engine.record, "gw-b", owned=[key])
    b.connection.close()
    assert await a.tokens(key, 3)
    assert engine.core.active == {key}


async def test_welcome_is_the_first_frame_even_while_old_attempts_are_being_stopped(
    serve_engine: Any, dial: Any, observed_core: Any
) -> None:
    is_stopping = asyncio.Event()

    class SlowToAbort(observed_core.Core):  # type: ignore[misc]
        async def abort(self, wire_ids: list[str]) -> None:
            is_stopping.set()
            await asyncio.sleep(0.2)  # ten heartbeats and many steps
            await super().abort(wire_ids)

    engine = await serve_engine(core=SlowToAbort(observed_core.model(num_tokens=FOREVER)))
    before = await dial(engine.record)
    kept = before.submit("kept")
    before.submit("abandoned")
    await before.tokens(kept, 1)
    after = await dial(engine.record, greets=False)
    after.connection.send(Hello("gw-a", engine.record.secret, owned=[kept]))
    await is_stopping.wait()
    assert isinstance(await after.connection.receive(), Welcome)
    assert await after.tokens(kept, 3)


async def test_a_finished_attempt_has_no_owner(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=3)
    peer = await dial(engine.record)
    key = peer.submit("x")
    assert len(await peer.tokens(key)) == 3
    again = await dial(engine.record, owned=[key])
    assert len(await again.tokens(again.submit("x"))) == 3
    await eventually(lambda: not engine.core.active)


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
