"""The scripted core follows those rules of vLLM on which fleet tests rely."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.config.model import ModelConfig, ScriptConfig
from qwenfleet.cluster.labels import FinishReason
from qwenfleet.deployments.engine_host.core import CoreDead
from qwenfleet.deployments.engine_host.scripted_core import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    PrefixCache,
    ScriptedCore,
)
from qwenfleet.deployments.wire.frames import Submit
from qwenfleet.deployments.wire.tokens import TokenIds

prompts = st.lists(st.integers(0, 3), min_size=1, max_size=100)


def submit(prompt: list[int], **fields: Any) -> Submit:
    return Submit("x", 0, TokenIds(prompt), b"", **fields)


@given(prompts, prompts)
def test_a_hit_is_whole_blocks_of_a_common_prefix_short_of_the_last_token(
    first: list[int], second: list[int]
) -> None:
    cache = PrefixCache()
    assert cache.hit_tokens(first, None) == 0
    hit = cache.hit_tokens(second, None)
    assert hit % BLOCK_SIZE == 0
    assert hit < len(second)
    assert first[:hit] == second[:hit]
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    assert hit == min(common, len(second) - 1) // BLOCK_SIZE * BLOCK_SIZE


def test_tenants_with_different_salts_share_no_blocks() -> None:
    cache = PrefixCache()
    prompt = list(range(64))
    cache.hit_tokens(prompt, "tenant-1")
    assert cache.hit_tokens(prompt, "tenant-2") == 0
    assert cache.hit_tokens(prompt, "tenant-1") == 48


def test_the_least_recently_used_blocks_are_evicted_first() -> None:
    cache = PrefixCache(num_blocks=4)
    old, new = [1] * 33, [2] * 33
    cache.hit_tokens(old, None)
    cache.hit_tokens(new, None)
    assert cache.hit_tokens(old, None) == 32
    cache.hit_tokens([3] * 33, None)
    assert cache.hit_tokens(old, None) == 32
    assert cache.hit_tokens(new, None) == 0


@given(
    st.integers(1, 20),
    st.none() | st.integers(1, 20),
    st.integers(0, 19).map(lambda count: list(range(count))),
)
def test_an_answer_continues_after_the_tokens_of_earlier_attempts(
    num_tokens: int, max_tokens: int | None, delivered: list[int]
) -> None:
    length = min(num_tokens, max_tokens or num_tokens)
    delivered = delivered[: length - 1]
    script = ScriptConfig(step_s=0, tokens=tuple(range(20)), num_tokens=num_tokens)

    async def play() -> tuple[list[int], int | None]:
        core = ScriptedCore(ModelConfig(id="m", engine="scripted", script=script))
        await core.add("x", submit([1], max_tokens=max_tokens, output_token_ids=delivered))
        tokens = list(delivered)
        while True:
            (output,) = (await core.next_step()).outputs
            tokens += output.token_ids
            if output.finish_reason is not None:
                return tokens, output.finish_reason

    tokens, reason = asyncio.run(play())
    assert tokens == list(range(length))
    assert reason == (
        FinishReason.LENGTH
        if max_tokens is not None and max_tokens < num_tokens
        else FinishReason.STOP
    )


async def test_prefill_takes_the_time_of_the_tokens_that_are_not_cached(observed_core: Any) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    core = observed_core(sleep=sleep, step_s=0.5, prefill_tokens_per_s=100, num_tokens=2)
    prompt = list(range(80))
    for _ in range(2):
        await core.add("x", submit(prompt))
        steps = [await core.next_step() for _ in range(2)]
        assert steps[1].outputs[0].finish_reason == FinishReason.STOP
    # 80 tokens, then the last of five blocks only.
    assert waits == pytest.approx([0.5 + 0.8, 0.5, 0.5 + 0.16, 0.5])


async def test_cached_tokens_are_reported_once_with_the_first_output(observed_core: Any) -> None:
    core = observed_core(num_tokens=3)
    for expected in ([0, None, None], [64, None, None]):
        await core.add("x", submit(list(range(80))))
        outputs = [(await core.next_step()).outputs[0] for _ in range(3)]
        assert [output.cached_tokens for output in outputs] == expected


async def test_only_running_attempts_use_the_kv_cache(observed_core: Any) -> None:
    core = observed_core(num_tokens=2)
    await core.add("x", submit(list(range(10 * BLOCK_SIZE - 1))))
    await core.add("y", submit(list(range(5))))
    used = [(await core.next_step()).load[0].kv_usage * NUM_BLOCKS for _ in range(2)]
    assert used == [11, 0]


async def test_a_scripted_death_comes_after_its_tokens(observed_core: Any) -> None:
    core = observed_core(fail_after_tokens=3, num_tokens=50)
    await core.add("x", submit([1]))
    for _ in range(3):
        await core.next_step()
    with pytest.raises(CoreDead, match="after 3 tokens"):
        await core.next_step()


async def test_an_idle_core_waits_for_work(observed_core: Any) -> None:
    core = observed_core()
    step = asyncio.create_task(core.next_step())
    await asyncio.sleep(0.02)
    assert not step.done()
    await core.add("x", submit([1]))
    assert (await asyncio.wait_for(step, 10)).outputs[0].token_ids == [10]
