"""Tests that costly outputs wait for plain ones, and leave the loop free between their turns."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from qwenfleet.deployments.vllm_adapter.output_turns import VALUES_PER_TURN, OutputTurns
from tests.unit.deployments.vllm_adapter.test_front_end import pytestmark

__all__ = ["pytestmark"]

EACH = 21
TOKENS = VALUES_PER_TURN // EACH
"""Outputs of one turn, with a token each."""
LOGPROBS = LogprobsLists(np.ones((1, EACH)), np.zeros((1, EACH)), np.array([1]))


def plain(name: str, token: int = 7) -> EngineCoreOutput:
    return EngineCoreOutput(request_id=name, new_token_ids=[token])


def costly(name: str, token: int = 7) -> EngineCoreOutput:
    return EngineCoreOutput(request_id=name, new_token_ids=[token], new_logprobs=LOGPROBS)


async def names(turns: OutputTurns) -> list[str]:
    step = await asyncio.wait_for(turns.get(), 10)
    return [output.request_id for output in step.outputs]


@pytest.mark.parametrize(
    "costs",
    [
        {"new_logprobs": LOGPROBS},
        {"new_prompt_logprobs_tensors": LogprobsTensors.empty_cpu(1, 1)},
    ],
)
async def test_plain_outputs_come_first_and_all_at_once(costs: Any) -> None:
    turns = OutputTurns()
    late = EngineCoreOutput(request_id="late", new_token_ids=[], **costs)
    turns.put([late, *(plain(str(i)) for i in range(50))], 1.0)
    turns.put([plain("last")], 2.0)
    assert await names(turns) == [*map(str, range(50)), "last"]
    assert await names(turns) == ["late"]


async def test_costly_outputs_come_a_few_at_a_time() -> None:
    turns = OutputTurns()
    turns.put([costly(str(i)) for i in range(TOKENS + 1)], 1.0)
    assert len(await names(turns)) == TOKENS
    turns.put([plain("plain")], 2.0)
    assert await names(turns) == ["plain"]
    assert await names(turns) == [str(TOKENS)]


async def test_an_output_with_more_than_a_turn_of_values_is_one_alone() -> None:
    turns = OutputTurns()
    prompt = LogprobsTensors.empty_cpu(1000, EACH)
    large = EngineCoreOutput(
        request_id="large", new_token_ids=[], new_prompt_logprobs_tensors=prompt
    )
    turns.put([costly("a"), large, costly("b")], 1.0)
    assert [await names(turns) for _ in range(3)] == [["a"], ["large"], ["b"]]


async def test_the_outputs_of_one_request_keep_their_order() -> None:
    """The last one has no log probabilities, for example when the request was aborted."""
    turns = OutputTurns()
    turns.put([costly("a", token) for token in range(TOKENS + 1)], 1.0)
    turns.put([plain("a", 99)], 1.0)
    tokens = []
    for _ in range(2):
        step = await asyncio.wait_for(turns.get(), 10)
        tokens += [token for output in step.outputs for token in output.new_token_ids]
    assert tokens == [*range(TOKENS + 1), 99]
    turns.put([plain("a")], 2.0)
    turns.put([costly("b")], 2.0)
    assert await names(turns) == ["a"]


async def test_others_run_between_two_turns_of_costly_outputs() -> None:
    turns = OutputTurns()
    turns.put([costly(str(i)) for i in range(10 * TOKENS)], 1.0)
    ran = 0

    async def others() -> None:
        nonlocal ran
        while True:
            ran += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    for _ in range(10):
        await names(turns)
    task.cancel()
    assert ran >= 10


async def test_a_rest_is_as_long_as_the_turn_was_and_a_plain_output_ends_it() -> None:
    ticks = iter([0.0, 0.03, 1.0, 1.0 + 60.0, 100.0])
    turns = OutputTurns(clock=lambda: next(ticks))
    turns.put([costly(str(i)) for i in range(3 * TOKENS)], 1.0)
    loop = asyncio.get_running_loop()
    assert len(await names(turns)) == TOKENS
    began_at = loop.time()
    await names(turns)
    assert loop.time() - began_at >= 0.03
    resting = asyncio.create_task(names(turns))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not resting.done()
    turns.put([plain("plain")], 2.0)
    assert await resting == ["plain"]
    assert turns.waiting_values == TOKENS * EACH
    await names(turns)
    assert turns.waiting_values == 0


async def test_a_reader_waits_for_the_first_output() -> None:
    turns = OutputTurns()
    reading = asyncio.create_task(names(turns))
    await asyncio.sleep(0)
    assert not reading.done()
    turns.put([plain("a")], 1.0)
    assert await reading == ["a"]
