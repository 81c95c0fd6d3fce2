"""A prompt that kills its engine kills at most one more, and other requests finish."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.dispatch.suspicion import MAX_LOSSES
from qwenfleet.deployments.engine_host.core import CoreDead, CoreStep
from qwenfleet.deployments.ingress.errors import RequestKillsEngines
from qwenfleet.deployments.wire.frames import Submit, Trying
from qwenfleet.deployments.wire.liveness import Condition

SCRIPT = {"tokens": tuple(range(40)), "num_tokens": 40}
PLAYED = list(range(40))
POISON = [6, 6, 6]


@pytest.fixture
def serve_mortal(serve_engine: Any, observed_core: Any) -> Any:
    """Start engines whose core dies in the step after it receives POISON."""

    class Mortal(observed_core.Core):  # type: ignore[misc]
        is_dying = False
        is_dead = False

        async def add(self, wire_id: str, submit: Submit) -> None:
            await super().add(wire_id, submit)
            self.is_dying = self.is_dying or submit.prompt_token_ids == POISON

        async def next_step(self) -> CoreStep:
            step: CoreStep = await super().next_step()
            if self.is_dying:
                self.is_dead = True
                raise CoreDead("an illegal memory access")
            return step

    async def serve(name: str, **fields: Any) -> Any:
        return await serve_engine(engine=name, core=Mortal(observed_core.model(**SCRIPT)), **fields)

    return serve


@pytest.fixture
def serve_gated(serve_engine: Any, observed_core: Any, new_gate: Any) -> Any:
    """Start engines whose steps and death the test controls: (engine, gate)."""

    async def serve(name: str, **fields: Any) -> Any:
        gate = new_gate()
        core = observed_core(sleep=gate, **SCRIPT)
        return await serve_engine(engine=name, core=core, **fields), gate

    return serve


def dead(engines: list[Any]) -> int:
    return sum(engine.core.is_dead for engine in engines)


@pytest.mark.parametrize("gateways", [1, 2])
async def test_a_poisonous_prompt_kills_at_most_one_more_engine_and_innocents_finish(
    serve_mortal: Any, new_desk: Any, eventually: Any, gateways: int
) -> None:
    engines = [await serve_mortal(f"e{index}") for index in range(4)]
    desks = [new_desk(f"gw-{index}") for index in range(gateways)]
    for desk in desks:
        await desk.meet(*engines)
    innocents = []
    for index in range(12):
        innocents.append(desks[index % gateways].ask(f"innocent-{index}", [index]))
        if index == 5:
            poison = desks[0].ask("poison", POISON)
    await eventually(lambda: poison.is_over and all(stream.is_over for stream in innocents))
    assert isinstance(poison.error, RequestKillsEngines)
    assert poison.tokens == []
    assert [stream.tokens for stream in innocents] == [PLAYED] * 12
    assert dead(engines) == 2


async def test_innocents_wait_for_an_engine_after_a_conviction(
    serve_mortal: Any, new_desk: Any, eventually: Any
) -> None:
    engines = [await serve_mortal("e1"), await serve_mortal("e2")]
    desk = new_desk()
    await desk.meet(*engines)
    streams = [desk.ask(f"innocent-{index}", [index]) for index in range(6)]
    poison = desk.ask("poison", POISON)
    await eventually(lambda: poison.is_over)
    assert dead(engines) == 2
    await eventually(lambda: desk.dispatcher.num_moving == sum(not s.is_over for s in streams) > 0)
    await desk.meet(await serve_mortal("e3"))
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [PLAYED] * 6
    assert desk.dispatcher.num_moving == 0


async def test_a_prompt_that_kills_whole_hosts_kills_at_most_four(
    serve_mortal: Any, new_desk: Any, eventually: Any
) -> None:
    engines = [await serve_mortal(f"e{index}") for index in range(5)]
    desk = new_desk()
    await desk.meet(*engines)

    async def die_with_its_core(engine: Any) -> None:
        """Kill the host without a message, as a kernel panic does."""
        while not engine.core.is_dying:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await engine.kill()

    async with asyncio.TaskGroup() as tasks:
        watches = [tasks.create_task(die_with_its_core(engine)) for engine in engines]
        streams = [desk.ask(f"innocent-{index}", [index]) for index in range(10)]
        poison = desk.ask("poison", POISON)
        await eventually(lambda: poison.is_over and all(stream.is_over for stream in streams))
        for watch in watches:
            watch.cancel()
    assert isinstance(poison.error, RequestKillsEngines)
    assert [stream.tokens for stream in streams] == [PLAYED] * 10
    # Four if the host's Trying frame was lost with it.
    assert sum(engine.core.is_dying for engine in engines) in (3, 4)


async def test_an_innocent_survives_many_guilty_trials_before_its_own(
    serve_mortal: Any, new_desk: Any, eventually: Any
) -> None:
    engines = [await serve_mortal("e0")]
    desk = new_desk()
    await desk.meet(*engines)
    poisons = [desk.ask(f"poison-{index}", POISON) for index in range(5)]
    innocent = desk.ask("innocent")
    while not all(stream.is_over for stream in desk.streams.values()):
        await eventually(lambda: engines[-1].core.is_dead or innocent.is_over)
        engines.append(await serve_mortal(f"e{len(engines)}"))
        await desk.meet(engines[-1])
    assert all(isinstance(poison.error, RequestKillsEngines) for poison in poisons)
    assert innocent.tokens == PLAYED
    assert dead(engines) == 6  # the first, and one for each of them


async def test_suspects_are_tried_one_at_a_time_on_one_engine(
    serve_gated: Any, new_desk: Any, eventually: Any
) -> None:
    crashing, fuse = await serve_gated("e0")
    desk = new_desk()
    await desk.meet(crashing)
    streams = [desk.ask(f"cmpl-{index}") for index in range(3)]
    await eventually(lambda: len(crashing.core.active) == 3)
    others = [await serve_gated(name) for name in ("e1", "e2")]
    await desk.meet(*(engine for engine, _ in others))
    fuse.blow()
    await eventually(lambda: any(engine.core.active for engine, _ in others))
    ((court, gate),) = [(engine, gate) for engine, gate in others if engine.core.active]
    ((idle, _),) = [pair for pair in others if pair[0] is not court]
    tried = ["cmpl-0.1", "cmpl-1.1", "cmpl-2.1"]  # in their order of arrival
    for index in range(3):
        await eventually(lambda index=index: court.core.names == set(tried[: index + 1]))
        assert len(court.host._attempts) == index + 1, "the others wait at the gateway"
        gate.step()
    assert all(submit.is_trial for submit in court.core.submits)
    gate.open()
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert idle.core.submits == []
    assert [stream.tokens for stream in streams] == [list(range(40))] * 3
    assert not any(stream.flight.suspicion.is_suspect for stream in streams)


async def test_a_new_request_does_not_wait_for_the_trials(
    serve_gated: Any, new_desk: Any, eventually: Any
) -> None:
    crashing, fuse = await serve_gated("e0")
    court, gate = await serve_gated("e1")
    desk = new_desk()
    await desk.meet(crashing)
    suspects = [desk.ask(name) for name in ("x", "y")]
    await eventually(lambda: len(crashing.core.active) == 2)
    await desk.meet(court)
    fuse.blow()
    await eventually(lambda: court.core.names == {"x.1"})
    new = desk.ask("new")
    await eventually(lambda: court.core.names == {"x.1", "new.0"})
    gate.open()
    await eventually(lambda: new.is_over and all(stream.is_over for stream in suspects))


async def test_a_trial_that_a_drain_interrupts_does_not_count(
    serve_gated: Any, new_desk: Any, eventually: Any
) -> None:
    (x, x_fuse), (e0, e0_fuse) = await serve_gated("x"), await serve_gated("e0")
    (a, _), (b, b_fuse) = await serve_gated("a"), await serve_gated("b")
    desk = new_desk()
    await desk.meet(x)
    guilty = desk.ask("guilty")
    await desk.meet(e0)
    innocent = desk.ask("innocent")
    await eventually(lambda: x.core.active and e0.core.active)
    await desk.meet(a)
    e0_fuse.blow()
    await eventually(lambda: a.core.names == {"innocent.1"})
    await eventually(lambda: innocent.flight.suspicion.is_on_trial)
    x_fuse.blow()
    await eventually(lambda: guilty.flight.link is None)
    await desk.meet(b)
    draining = asyncio.create_task(a.host.drain("scaled down", 20))
    await eventually(lambda: b.core.names == {"guilty.1"})
    await eventually(lambda: guilty.flight.suspicion.is_on_trial)
    b_fuse.blow()
    await eventually(lambda: guilty.is_over)
    assert isinstance(guilty.error, RequestKillsEngines)
    assert innocent.error is None
    c, gate = await serve_gated("c")
    gate.open()
    await desk.meet(c)
    await eventually(lambda: innocent.is_over)
    assert innocent.tokens == PLAYED
    await draining


async def test_a_suspect_does_not_move_between_frozen_engines(
    serve_gated: Any, new_desk: Any, eventually: Any, clock: Any, wire: Any
) -> None:
    patient = wire.model_copy(update={"lease_s": 3600})
    (e0, fuse) = await serve_gated("e0")
    (a, a_gate), (b, b_gate) = [
        await serve_gated(name, clock=clock, wire=patient) for name in ("a", "b")
    ]
    desk = new_desk()
    await desk.meet(e0)
    stream = desk.ask("cmpl-1")
    await eventually(lambda: e0.core.active)
    await desk.meet(a, b)
    fuse.blow()
    await eventually(lambda: a.core.active or b.core.active)
    clock.advance(31)
    owner = stream.flight.link
    await eventually(lambda: owner.condition is Condition.FROZEN)
    await eventually(lambda: stream.flight.link not in {owner, None})
    other = {"a": a, "b": b}[stream.flight.link.engine]
    await eventually(lambda: other.core.active)  # or the clock advances before its work arrives
    clock.advance(31)
    await eventually(
        lambda: all(desk.link(engine).condition is Condition.FROZEN for engine in (a, b))
    )
    for _ in range(5):  # heartbeats
        before = desk.link(a)._heard_at
        await eventually(lambda before=before: desk.link(a)._heard_at > before)
    assert stream.error is None
    assert stream.flight.attempt == 2
    for gate in (a_gate, b_gate):
        gate.open()
    await eventually(lambda: stream.is_over)
    assert stream.tokens == PLAYED


async def test_a_request_that_cuts_every_link_before_its_trial_is_convicted_and_others_finish(
    serve_engine: Any, observed_core: Any, new_desk: Any, eventually: Any
) -> None:
    """Such as one that its hosts cannot read: they end without a word, and never try it."""

    class Stuck(observed_core.Core):  # type: ignore[misc]
        is_stuck = is_cut = False

        async def add(self, wire_id: str, submit: Submit) -> None:
            if submit.prompt_token_ids == POISON:
                self.is_stuck = True
                while not self.is_cut:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await super().add(wire_id, submit)

    class Unannounced(Dispatcher):
        def on_trying(self, link: EngineLink, frame: Trying) -> None:
            pass

    engines = [
        await serve_engine(engine=f"e{index}", core=Stuck(observed_core.model(**SCRIPT)))
        for index in range(MAX_LOSSES + 1)
    ]
    desk = new_desk(kind=Unannounced)
    await desk.meet(*engines)

    async def end_without_a_word(engine: Any) -> None:
        while not engine.core.is_stuck:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for session in engine.host._sessions.values():
            session.connection.abort()
        engine.core.is_cut = True

    async with asyncio.TaskGroup() as tasks:
        watches = [tasks.create_task(end_without_a_word(engine)) for engine in engines]
        streams = [desk.ask(f"innocent-{index}", [index]) for index in range(10)]
        poison = desk.ask("poison", POISON)
        await eventually(lambda: poison.is_over and all(stream.is_over for stream in streams))
        for watch in watches:
            watch.cancel()
    assert isinstance(poison.error, RequestKillsEngines)
    assert [stream.tokens for stream in streams] == [PLAYED] * 10
    assert sum(engine.core.is_stuck for engine in engines) == MAX_LOSSES
