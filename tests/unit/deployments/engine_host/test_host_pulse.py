"""A host watches its core, tries suspects one at a time, and replaces a stuck core."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.deployments.engine_host.compile_watch import Compiles
from qwenfleet.deployments.engine_host.core import CoreDead
from qwenfleet.deployments.engine_host.core_watch import GIVE_UP_S
from qwenfleet.deployments.engine_host.pulse import CEILING_S, UNLEARNED_S
from qwenfleet.deployments.wire.frames import Abort, Alive, Lease, Lost, Outputs, Trying

FOREVER = 1_000_000
PATIENT = WireConfig(lease_s=3600, heartbeat_s=0.02, connect_timeout_s=5)


@pytest.fixture
def serve_stuck(serve_engine: Any, observed_core: Any, gate: Any, clock: Any) -> Any:
    """Start an engine whose steps `gate` controls, and count probes and CPU seconds."""

    class Metered(observed_core.Core):  # type: ignore[misc]
        probes = 0
        used_s: float | None = None
        grammars = Compiles()

        async def probe(self) -> None:
            self.probes += 1
            await super().probe()

        def cpu_s(self) -> float | None:
            return self.used_s

        def compiles(self) -> Compiles:
            return self.grammars

    async def serve() -> Any:
        core = Metered(observed_core.model(num_tokens=FOREVER), sleep=gate)
        return await serve_engine(core=core, clock=clock, wire=PATIENT)

    return serve


async def until(peer: Any, condition: str) -> Alive:
    while True:
        alive: Alive = await peer.receive(Alive)
        if alive.condition == condition:
            return alive


async def test_a_stuck_core_is_slow_then_frozen_probed_once_and_recovers_with_its_step(
    serve_stuck: Any, dial: Any, gate: Any, clock: Any
) -> None:
    engine = await serve_stuck()
    peer = await dial(engine.record)
    peer.submit("x")
    await until(peer, "steady")
    assert engine.host.quarantine == ""
    clock.advance(UNLEARNED_S / 2 + 0.5)
    slow = await until(peer, "slow")
    assert slow.reason.startswith("no step for 15.5 s")
    assert engine.host.quarantine == slow.reason
    assert engine.core.probes == 0
    clock.advance(UNLEARNED_S / 2)
    frozen = await until(peer, "frozen")
    assert frozen.reason.startswith("no step for 30.5 s")
    for _ in range(3):
        await peer.receive(Alive)
    assert engine.core.probes == 1
    gate.step()
    thawed = await until(peer, "steady")
    assert (thawed.reason, engine.host.quarantine) == ("", "")


async def test_a_core_that_uses_the_cpu_for_fifteen_seconds_is_only_slow(
    serve_stuck: Any, dial: Any, clock: Any
) -> None:
    engine = await serve_stuck()
    engine.core.used_s = 10.0
    peer = await dial(engine.record)
    peer.submit("x")
    await until(peer, "steady")
    seen = set()
    for _ in range(int(CEILING_S) - 1):
        clock.advance(1)
        engine.core.used_s += 0.9
        now = clock()
        while (alive := await peer.receive(Alive)).clock_s < now:
            pass
        seen.add(alive.condition)
    assert seen == {"steady", "slow"}


async def test_a_core_that_stays_frozen_is_replaced_and_every_gateway_is_notified(
    serve_stuck: Any, dial: Any, clock: Any
) -> None:
    engine = await serve_stuck()
    a, b = await dial(engine.record, "gw-a"), await dial(engine.record, "gw-b")
    a.submit("x")
    await until(a, "steady")
    clock.advance(GIVE_UP_S - 1)
    await until(a, "frozen")
    assert not engine.running.done()
    clock.advance(2)
    for peer in (a, b):
        lost = await peer.receive(Lost)
        assert (lost.is_frozen, lost.is_drained) == (True, False)
        assert lost.reason.startswith("no step for 121.0 s")
    with pytest.raises(CoreDead, match=r"no step for 121\.0 s"):
        await engine.running


async def test_an_idle_engine_is_steady_and_is_not_blamed_for_its_pause(
    serve_stuck: Any, dial: Any, gate: Any, clock: Any
) -> None:
    engine = await serve_stuck()
    peer = await dial(engine.record)
    clock.advance(500)
    assert (await until(peer, "steady")).reason == ""
    peer.submit("x")
    clock.advance(1)
    now = clock()
    while (alive := await peer.receive(Alive)).clock_s < now:
        pass
    assert alive.condition == "steady"
    gate.step()
    assert (await peer.receive(Outputs)).outputs


async def test_suspects_of_two_gateways_run_one_at_a_time_and_are_announced_first(
    serve_stuck: Any, dial: Any, gate: Any, eventually: Any
) -> None:
    engine = await serve_stuck()
    a, b = await dial(engine.record, "gw-a"), await dial(engine.record, "gw-b")
    first = a.submit("x", is_trial=True)
    assert (await a.receive(Trying)).wire_id == first
    second = b.submit("x", is_trial=True)
    free = b.submit("free")
    await eventually(lambda: engine.core.active == {first, free})
    a.connection.send(Lease())
    await a.receive(Alive)
    assert not any(isinstance(frame, Trying) for frame in b.seen)
    gate.step(2)
    assert (await b.receive(Trying)).wire_id == second
    await eventually(lambda: engine.core.active == {first, second, free})
    tokens = [f for f in a.seen if isinstance(f, Outputs)]
    assert all(o.wire_id == first for frame in tokens for o in frame.outputs)


@pytest.mark.parametrize("ending", ["abort", "hang-up"])
async def test_a_trial_that_its_gateway_ends_makes_room_for_the_next_suspect(
    serve_stuck: Any, dial: Any, eventually: Any, ending: str
) -> None:
    engine = await serve_stuck()
    a, b = await dial(engine.record, "gw-a"), await dial(engine.record, "gw-b")
    first = a.submit("x", is_trial=True)
    await a.receive(Trying)
    second = b.submit("y", is_trial=True)
    await eventually(lambda: len(engine.host._attempts) == 2)
    if ending == "abort":
        a.connection.send(Abort([first]))
    else:
        a.connection.close()
    assert (await b.receive(Trying)).wire_id == second
    await eventually(lambda: engine.core.active == {second})
    assert engine.host.orphans == (ending == "hang-up")


async def test_a_draining_engine_waits_for_suspects_without_a_trial(
    serve_stuck: Any, dial: Any, gate: Any, eventually: Any
) -> None:
    engine = await serve_stuck()
    peer = await dial(engine.record)
    keys = [peer.submit(name, is_trial=True, max_tokens=1) for name in ("x", "y")]
    await eventually(lambda: len(engine.host._attempts) == 2)
    gate.open()
    await engine.host.drain("scaled down", 10.0)
    await peer.receive(Lost)
    done = [o.wire_id for f in peer.seen if isinstance(f, Outputs) for o in f.outputs]
    assert done == keys


async def test_a_core_that_steps_but_compiles_no_grammar_gets_no_new_work_until_it_does(
    serve_stuck: Any, dial: Any, gate: Any
) -> None:
    engine = await serve_stuck()
    peer = await dial(engine.record)
    peer.submit("x")
    await until(peer, "steady")
    engine.core.grammars = Compiles(oldest_s=31.0)
    slow = await until(peer, "slow")
    assert slow.reason.startswith("a request has waited 31 s for its grammar")
    assert engine.host.quarantine == slow.reason
    gate.step()
    await peer.receive(Outputs)
    for _ in range(3):
        assert (await peer.receive(Alive)).condition == "slow", "its steps do not show it"
    engine.core.grammars = Compiles(done=1, longest_s=32.0)
    well = await until(peer, "steady")
    assert (well.reason, engine.host.quarantine) == ("", "")


async def test_an_idle_core_whose_grammars_are_stuck_is_slow_too(
    serve_stuck: Any, dial: Any
) -> None:
    engine = await serve_stuck()
    peer = await dial(engine.record)
    engine.core.grammars = Compiles(stuck=1)
    assert (await until(peer, "slow")).reason == "1 grammars of ended requests still compile"


async def test_a_core_that_compiles_no_grammar_for_too_long_is_replaced_and_its_streams_move(
    serve_stuck: Any, dial: Any, clock: Any, gate: Any
) -> None:
    engine = await serve_stuck()
    peer = await dial(engine.record)
    peer.submit("x")
    engine.core.grammars = Compiles(stuck=1)
    await until(peer, "slow")
    clock.advance(GIVE_UP_S + 1)
    gate.step()  # the core itself works
    lost = await peer.receive(Lost)
    assert (lost.is_frozen, lost.reason) == (True, "1 grammars of ended requests still compile")
    with pytest.raises(CoreDead):
        await engine.running
