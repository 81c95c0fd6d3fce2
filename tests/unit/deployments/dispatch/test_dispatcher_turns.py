"""Requests that wait: none after one that an engine still serves, and none for too long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qwenfleet.deployments.dispatch import waiting_room
from qwenfleet.deployments.dispatch.waiting_room import PATIENCE_S

SCRIPT = {"tokens": tuple(range(20)), "num_tokens": 20}


@pytest.fixture
def serve_gated(serve_engine: Any, observed_core: Any, new_gate: Any) -> Any:
    """Start engines whose steps the test controls: (engine, gate)."""

    async def serve(name: str, **fields: Any) -> Any:
        gate = new_gate()
        core = observed_core(sleep=gate, **SCRIPT)
        return await serve_engine(engine=name, core=core, **fields), gate

    return serve


def asked(engine: Any) -> list[str]:
    return [submit.request_id for submit in engine.core.submits]


async def test_a_request_without_an_engine_does_not_wait_for_a_stream_that_waits_to_leave(
    new_desk: Any, serve_gated: Any, eventually: Any
) -> None:
    leaving, gate = await serve_gated("leaving")
    desk, other = new_desk(), new_desk("gw-b")
    await desk.meet(leaving)
    long = desk.ask("long", range(500))
    gate.step()
    await eventually(lambda: long.tokens)
    draining = asyncio.create_task(leaving.host.drain("scaled down", 20))
    await eventually(lambda: desk.dispatcher.num_moving == 1)
    new = desk.ask("new")
    taking, taking_gate = await serve_gated("taking", limits={"max_num_batched_tokens": 50})
    await other.meet(taking)
    other.ask("others", range(60))
    await eventually(lambda: taking.core.active)
    await desk.meet(taking)
    await eventually(lambda: asked(taking) == ["others", "new"])
    assert long.flight.link is desk.link(leaving), "no engine has room for it"
    gate.open(), taking_gate.open()
    await eventually(lambda: new.is_over and long.is_over)
    await asyncio.wait_for(draining, 10)


async def test_a_request_of_low_priority_does_not_wait_as_long_as_others_come(
    new_desk: Any, serve_gated: Any, eventually: Any, clock: Any
) -> None:
    desk = new_desk(clock=clock)
    doomed, _ = await serve_gated("doomed")
    await desk.meet(doomed)
    desk.ask("batch", priority=5)
    await eventually(lambda: doomed.core.active)
    full, gate = await serve_gated("full", limits={"max_num_seqs": 1})
    await desk.meet(full, doomed)
    desk.ask("runs")
    await eventually(lambda: asked(full) == ["runs"])
    await doomed.kill()
    await eventually(lambda: desk.dispatcher.num_moving == 1)
    for name in ("first", "second"):
        clock.advance(PATIENCE_S - 0.5 if name == "first" else 0.4)
        desk.ask(name)
    assert desk.dispatcher.num_moving == 3
    clock.advance(0.2)
    await eventually(lambda: asked(full) == ["runs", "first", "second", "batch"])
    gate.open()
    await eventually(lambda: all(stream.is_over for stream in desk.streams.values()))


async def test_many_that_wait_for_the_first_engine_are_sent_in_turns(
    new_desk: Any, serve_gated: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_room, "SENDS_PER_TURN", 3)
    desk = new_desk()
    streams = [desk.ask(f"cmpl-{index:02}") for index in range(10)]
    engine, gate = await serve_gated("e1")
    waits: list[int] = []
    dispatch = desk.dispatcher._waiting.dispatch

    def count(*arguments: Any) -> bool:
        before = len(desk.dispatcher._waiting)
        is_done: bool = dispatch(*arguments)
        waits.append(before - len(desk.dispatcher._waiting))
        return is_done

    monkeypatch.setattr(desk.dispatcher._waiting, "dispatch", count)
    await desk.meet(engine)
    await eventually(lambda: desk.dispatcher.num_moving == 0)
    assert waits == [3, 3, 3, 1]
    gate.open()
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert asked(engine) == [f"cmpl-{index:02}" for index in range(10)]


async def test_a_suspect_that_no_engine_can_run_holds_up_no_other(
    new_desk: Any, serve_gated: Any, eventually: Any
) -> None:
    crashing, fuse = await serve_gated("crashing", limits={"max_model_len": 512})
    large, _ = await serve_gated("large", limits={"max_model_len": 512})
    small, gate = await serve_gated("small", limits={"max_model_len": 100})
    desk = new_desk()
    await desk.meet(crashing)
    long, short = desk.ask("long", range(300), priority=-1), desk.ask("short")
    await eventually(lambda: len(crashing.core.active) == 2)
    await desk.meet(large, small)
    desk.link(large).is_draining = True  # connected, so the long one may wait for it
    desk.dispatcher.on_news(desk.link(large))
    fuse.blow()
    await eventually(lambda: asked(small) == ["short"])
    gate.open()
    await eventually(lambda: short.is_over)
    assert not long.is_over
