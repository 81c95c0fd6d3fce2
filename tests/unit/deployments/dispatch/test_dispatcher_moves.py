"""Streams leave an engine as fast as the others can take them, interactive first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qwenfleet.deployments.wire.liveness import Condition

SCRIPT = {"tokens": tuple(range(20)), "num_tokens": 20}
PLAYED = list(range(20))
PATIENT = {"lease_s": 3600}


@pytest.fixture
def serve_gated(serve_engine: Any, observed_core: Any, new_gate: Any) -> Any:
    """Start engines whose steps the test controls: (engine, gate). They record the most streams and
    prompt tokens that they held at once."""

    class Counting(observed_core.Core):  # type: ignore[misc]
        most_streams = 0

        async def add(self, wire_id: str, submit: Any) -> None:
            await super().add(wire_id, submit)
            self.most_streams = max(self.most_streams, len(self.active))

    async def serve(name: str, **fields: Any) -> Any:
        gate = new_gate()
        core = Counting(observed_core.model(**SCRIPT), sleep=gate)
        return await serve_engine(engine=name, core=core, **fields), gate

    return serve


def asked(engine: Any) -> list[str]:
    return [submit.request_id for submit in engine.core.submits]


async def test_a_drain_moves_interactive_streams_first_and_only_as_many_as_fit(
    new_desk: Any, serve_gated: Any, eventually: Any, metrics: Any
) -> None:
    leaving, _ = await serve_gated("leaving")
    desk = new_desk()
    await desk.meet(leaving)
    priorities = [5, 1, 3, 0, 4, 2]
    streams = [desk.ask(f"p{priority}", priority=priority) for priority in priorities]
    await eventually(lambda: len(leaving.core.active) == 6)
    small, gate = await serve_gated("small", limits={"max_num_seqs": 2})
    await desk.meet(small)
    draining = asyncio.create_task(leaving.host.drain("scaled down", 20))
    await eventually(lambda: len(small.core.active) == 2)
    await eventually(lambda: desk.dispatcher.num_moving == 4)
    assert asked(small) == ["p0", "p1"]
    assert leaving.core.names == {f"p{priority}.0" for priority in (2, 3, 4, 5)}
    gate.open()
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert asked(small) == [f"p{priority}" for priority in range(6)]
    assert small.core.most_streams == 2
    assert [stream.tokens for stream in streams] == [PLAYED] * 6
    assert [why for why, _ in metrics.resumes] == ["drained"] * 6
    await asyncio.wait_for(draining, 10)


async def test_started_streams_move_before_those_without_tokens(
    new_desk: Any, serve_gated: Any, eventually: Any
) -> None:
    leaving, gate = await serve_gated("leaving")
    desk = new_desk()
    await desk.meet(leaving)
    reading = [desk.ask(name) for name in ("r0", "r1")]
    while not all(stream.tokens for stream in reading):
        gate.step()
        await asyncio.sleep(0.001)
    for name in ("n0", "n1"):
        desk.ask(name)
    urgent = desk.ask("urgent", priority=-1)
    await eventually(lambda: len(leaving.core.active) == 5)
    assert not urgent.tokens
    single, gate = await serve_gated("single", limits={"max_num_seqs": 1})
    gate.open()
    await desk.meet(single)
    await leaving.kill()
    await eventually(lambda: all(stream.is_over for stream in desk.streams.values()))
    assert asked(single) == ["urgent", "r0", "r1", "n0", "n1"]


async def test_moving_prompts_wait_for_room_in_the_prefill_steps(
    new_desk: Any, serve_gated: Any, eventually: Any
) -> None:
    leaving, _ = await serve_gated("leaving")
    desk = new_desk()
    await desk.meet(leaving)
    lengths = [40, 40, 40, 500, 40]
    streams = [desk.ask(f"s{i}", range(length)) for i, length in enumerate(lengths)]
    await eventually(lambda: len(leaving.core.active) == 5)
    taking, gate = await serve_gated("taking", limits={"max_num_batched_tokens": 50})
    await desk.meet(taking)
    draining = asyncio.create_task(leaving.host.drain("scaled down", 20))
    await eventually(lambda: len(taking.core.active) == 2)  # 80 of 2 x 50 tokens
    for _ in range(3):  # heartbeats
        heard_at = desk.link(taking)._heard_at
        await eventually(lambda heard_at=heard_at: desk.link(taking)._heard_at > heard_at)
    assert asked(taking) == ["s0", "s1"]
    gate.step(2)  # a step may have begun before the second one arrived
    await eventually(lambda: "s2" in asked(taking))
    assert "s3" not in asked(taking)  # it does not fit after s2, and s4 does not overtake it
    assert "s4" not in asked(taking)
    gate.open()
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert asked(taking) == [f"s{index}" for index in range(5)]
    await asyncio.wait_for(draining, 10)


async def test_streams_that_a_drain_cannot_move_finish_on_their_engine(
    new_desk: Any, serve_gated: Any, eventually: Any, metrics: Any
) -> None:
    leaving, gate = await serve_gated("leaving")
    desk = new_desk()
    await desk.meet(leaving)
    streams = [desk.ask(name) for name in ("x", "y")]
    await eventually(lambda: len(leaving.core.active) == 2)
    draining = asyncio.create_task(leaving.host.drain("scaled down", 20))
    await eventually(lambda: desk.dispatcher.num_moving == 2)
    late = desk.ask("late")
    assert not desk.dispatcher.num_engines
    gate.open()
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [PLAYED] * 2
    assert metrics.resumes == []
    await asyncio.wait_for(draining, 10)
    assert asked(leaving) == ["x", "y"]
    assert desk.dispatcher.num_moving == 1
    taking, gate = await serve_gated("taking")
    gate.open()
    await desk.meet(taking)
    await eventually(lambda: late.is_over)
    assert desk.dispatcher.num_moving == 0


async def test_streams_that_wait_to_move_stay_if_their_engine_recovers(
    new_desk: Any, serve_gated: Any, eventually: Any, clock: Any, wire: Any
) -> None:
    frozen, gate = await serve_gated("frozen", clock=clock, wire=wire.model_copy(update=PATIENT))
    desk = new_desk()
    await desk.meet(frozen)
    streams = [desk.ask(f"s{index}") for index in range(3)]
    await eventually(lambda: len(frozen.core.active) == 3)
    full, full_gate = await serve_gated("full", limits={"max_num_seqs": 1})
    await desk.meet(full)
    clock.advance(31)
    await eventually(lambda: desk.link(frozen).condition is Condition.FROZEN)
    await eventually(lambda: full.core.active)
    await eventually(lambda: desk.dispatcher.num_moving == 2)
    gate.step()
    await eventually(lambda: desk.link(frozen).condition is Condition.STEADY)
    await eventually(lambda: desk.dispatcher.num_moving == 0)
    gate.open()
    full_gate.open()
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [PLAYED] * 3
    assert [stream.flight.attempt for stream in streams] == [1, 0, 0]
    assert asked(full) == ["s0"]


async def test_a_drain_with_two_gateways_moves_the_streams_of_both(
    new_desk: Any, serve_gated: Any, eventually: Any
) -> None:
    leaving, _ = await serve_gated("leaving")
    desks = [new_desk("gw-a"), new_desk("gw-b")]
    for desk in desks:
        await desk.meet(leaving)
    streams = [desk.ask(f"cmpl-{index}") for desk in desks for index in range(3)]
    await eventually(lambda: len(leaving.core.active) == 6)
    taking, gate = await serve_gated("taking")
    gate.open()
    for desk in desks:
        await desk.meet(taking)
    await asyncio.wait_for(leaving.host.drain("scaled down", 20), 10)
    assert leaving.host.orphans == 0
    assert not leaving.core.active
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [PLAYED] * 6


async def test_a_node_lost_after_its_notice_makes_no_request_a_suspect(
    new_desk: Any, serve_gated: Any, eventually: Any, metrics: Any
) -> None:
    desk = new_desk()
    spots = [await serve_gated(f"spot-{index}") for index in range(3)]
    stream = desk.ask("cmpl-1")
    drains = []
    for spot, _ in spots:
        await desk.meet(spot)
        await eventually(lambda spot=spot: spot.core.active)
        drains.append(asyncio.create_task(spot.host.drain("spot notice", 20)))
        await eventually(lambda spot=spot: desk.link(spot).is_draining)
        await spot.kill()
        await eventually(lambda: desk.dispatcher.num_moving == 1)
        assert (stream.flight.suspicion.unproven, stream.flight.suspicion.is_suspect) == (0, False)
    safe, gate = await serve_gated("safe")
    gate.open()
    await desk.meet(safe)
    await eventually(lambda: stream.is_over)
    assert stream.tokens == PLAYED
    assert [why for why, _ in metrics.resumes] == ["drained"]
    await asyncio.gather(*drains)
