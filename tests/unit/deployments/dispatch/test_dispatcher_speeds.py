"""Engines of two speeds at one gateway: each gets the work that it can do in the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qwenfleet.deployments.engine_host.learned_rate import ENOUGH
from qwenfleet.deployments.engine_host.rank_speed import SAMPLE_STEPS

PROMPT = 1000
NUM_TOKENS = SAMPLE_STEPS + 1
TOKENS = tuple(range(NUM_TOKENS))
FAST = {"step_s": 2**-10, "prefill_tokens_per_s": 2.0**15}
SLOW = {"step_s": 2**-8, "prefill_tokens_per_s": 2.0**13}


@pytest.fixture
def serve_timed(serve_engine: Any, observed_core: Any, new_gate: Any, clock: Any) -> Any:
    """Start engines with a clock of their own that step once their gate opens: (engine, gate)."""

    async def serve(name: str, speed: dict[str, float], **fields: Any) -> Any:
        gate, own_clock = new_gate(), type(clock)()

        async def sleep(seconds: float) -> None:
            own_clock.advance(seconds)
            await gate(seconds)

        core = observed_core(sleep=sleep, tokens=TOKENS, num_tokens=NUM_TOKENS, **speed)
        return await serve_engine(engine=name, core=core, clock=own_clock, **fields), gate

    return serve


@pytest.fixture
def learn(new_desk: Any, eventually: Any) -> Any:
    """Give each engine, alone, enough work to show its speed."""

    async def learn(engine: Any, gate: Any) -> None:
        gate.open()
        desk = new_desk("gw-before")
        await desk.meet(engine)
        for index in range(ENOUGH + 1):
            stream = desk.ask(f"{engine.record.id}-{index}", [index] * PROMPT)
            await eventually(lambda stream=stream: stream.is_over)
        assert engine.host.load[0].prefill_tokens_per_s > 0
        await desk.close()
        gate.close()
        engine.core.submits.clear()

    return learn


def unlike(count: int) -> list[list[int]]:
    """Prompts that share no prefix with each other or with those learned from."""
    return [[100 + index] * PROMPT for index in range(count)]


def knows(desk: Any, engine: Any, speed: dict[str, float]) -> bool:
    (target,) = desk.link(engine).targets()
    known = {"step_s": target.decode_step_s, "prefill_tokens_per_s": target.prefill_tokens_per_s}
    return known == speed


async def test_new_requests_wait_equally_long_on_both_engines(
    new_desk: Any, serve_timed: Any, learn: Any, eventually: Any
) -> None:
    (fast, fast_gate), (slow, slow_gate) = [
        await serve_timed(*kind) for kind in (("fast", FAST), ("slow", SLOW))
    ]
    await learn(fast, fast_gate)
    await learn(slow, slow_gate)
    desk = new_desk()
    await desk.meet(fast, slow)
    await eventually(lambda: knows(desk, fast, FAST) and knows(desk, slow, SLOW))
    streams = [desk.ask(f"s{i}", prompt) for i, prompt in enumerate(unlike(40))]
    owners = [stream.flight.link.engine for stream in streams]
    assert (owners.count("fast"), owners.count("slow")) == (32, 8)
    assert owners[:3] == ["fast"] * 3
    fast_gate.open(), slow_gate.open()
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [list(TOKENS)] * 40


async def test_an_engine_of_unknown_speed_gets_an_equal_share(
    new_desk: Any, serve_timed: Any, learn: Any, eventually: Any
) -> None:
    known, gate = await serve_timed("known", FAST)
    await learn(known, gate)
    new, _ = await serve_timed("new", SLOW)
    desk = new_desk()
    await desk.meet(known, new)
    await eventually(lambda: knows(desk, known, FAST))
    streams = [desk.ask(f"s{i}", prompt) for i, prompt in enumerate(unlike(20))]
    owners = [stream.flight.link.engine for stream in streams]
    assert (owners.count("known"), owners.count("new")) == (10, 10)


async def test_moving_streams_wait_for_room_measured_in_seconds(
    new_desk: Any, serve_timed: Any, learn: Any, eventually: Any
) -> None:
    limits = {"max_num_batched_tokens": 2000}
    (fast, fast_gate), (slow, slow_gate) = [
        await serve_timed(*kind, limits=limits) for kind in (("fast", FAST), ("slow", SLOW))
    ]
    await learn(fast, fast_gate)
    await learn(slow, slow_gate)
    leaving, _ = await serve_timed("leaving", FAST)
    desk = new_desk()
    await desk.meet(leaving)
    streams = [desk.ask(f"s{i}", prompt) for i, prompt in enumerate(unlike(10))]
    await eventually(lambda: len(leaving.core.active) == 10)
    await desk.meet(fast, slow)
    await eventually(lambda: knows(desk, fast, FAST) and knows(desk, slow, SLOW))
    draining = asyncio.create_task(leaving.host.drain("scaled down", 20))
    await eventually(lambda: len(fast.core.submits) + len(slow.core.submits) == 7)
    heard_at = desk.link(slow)._heard_at
    await eventually(lambda: desk.link(slow)._heard_at > heard_at + 0.05)
    # Two steps of 2,000 tokens take 0.195 s at the median speed of 20,480 tokens/s.
    assert (len(fast.core.submits), len(slow.core.submits)) == (6, 1)
    fast_gate.open(), slow_gate.open()
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [list(TOKENS)] * 10
    await asyncio.wait_for(draining, 10)
