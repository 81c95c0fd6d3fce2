"""The speed that a host learns of its core reaches every gateway with the load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qwenfleet.deployments.engine_host.learned_rate import ENOUGH
from qwenfleet.deployments.engine_host.rank_speed import SAMPLE_STEPS
from qwenfleet.deployments.wire.frames import Abort, Alive, Outputs, RankLoad

STEP_S = 1 / 64
TOKENS_PER_S = 8192.0


@pytest.fixture
def serve_timed(serve_engine: Any, observed_core: Any, clock: Any) -> Callable[..., Awaitable[Any]]:
    """Start engines whose steps take the script's time on the test's clock, and no real time."""

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)
        await asyncio.sleep(0)

    async def serve(**script: Any) -> Any:
        script = {"step_s": STEP_S, "prefill_tokens_per_s": TOKENS_PER_S} | script
        core = observed_core(sleep=sleep, **script)
        return await serve_engine(core=core, clock=clock, limits={"max_model_len": 100_000})

    return serve


def speeds(load: list[RankLoad]) -> tuple[float, float]:
    (rank,) = load
    return rank.prefill_tokens_per_s, rank.decode_step_s


async def test_speeds_reach_every_gateway_with_outputs_and_heartbeats(
    serve_timed: Any, dial: Any
) -> None:
    engine = await serve_timed(num_tokens=2 * SAMPLE_STEPS)
    asking, idle = await dial(engine.record, "gw-a"), await dial(engine.record, "gw-b")
    assert speeds((await idle.receive(Alive)).load) == (0, 0)
    for index in range(2 * ENOUGH):
        await asking.tokens(asking.submit(f"x{index}", [index] * 4096))
    outputs = [frame for frame in asking.seen if isinstance(frame, Outputs)]
    assert speeds(outputs[0].load) == (0, 0)
    assert speeds(outputs[-1].load) == (TOKENS_PER_S, STEP_S)
    alive = await idle.receive(Alive)
    while speeds(alive.load) != (TOKENS_PER_S, STEP_S):
        alive = await idle.receive(Alive)


async def test_a_cached_prefix_does_not_make_an_engine_look_fast(
    serve_timed: Any, dial: Any
) -> None:
    engine = await serve_timed(num_tokens=SAMPLE_STEPS)
    peer = await dial(engine.record)
    for index in range(3 * ENOUGH):
        # 8,192 tokens are cached after the first, and 4,096 are new.
        await peer.tokens(peer.submit(f"x{index}", [7] * 8192 + [100 + index] * 4096))
    assert speeds(engine.host.load) == (TOKENS_PER_S, STEP_S)


async def test_aborted_prompts_and_pauses_do_not_change_the_speed(
    serve_timed: Any, dial: Any, clock: Any, eventually: Any
) -> None:
    engine = await serve_timed(num_tokens=100_000)
    peer = await dial(engine.record)
    for index in range(3 * ENOUGH):
        key = peer.submit(f"x{index}", [index] * 4096)
        await peer.tokens(key, 2 * SAMPLE_STEPS)
        peer.connection.send(Abort([key]))
        await eventually(lambda: not engine.core.active)
        clock.advance(5)  # less than what makes a core look frozen
    assert speeds(engine.host.load) == (TOKENS_PER_S, STEP_S)
