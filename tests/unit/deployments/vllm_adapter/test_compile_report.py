"""A core is asked for its grammars only while it may have some, and never waited for."""

from __future__ import annotations

import asyncio
from typing import Any

from qwenfleet.deployments.engine_host.compile_watch import Compiles
from qwenfleet.deployments.vllm_adapter.compile_pool import PoolState
from qwenfleet.deployments.vllm_adapter.compile_report import CompileReport, combined


class FakeClient:
    def __init__(self, *answers: list[Any]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def call_utility_all_async(self, method: str) -> list[Any]:
        self.asked += 1
        if not self.answers:
            await asyncio.Event().wait()  # a frozen core
        return self.answers.pop(0)


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_core_without_grammars_is_not_asked() -> None:
    client, report = FakeClient(), CompileReport()
    assert report.look(client) == Compiles()
    await settle()
    assert client.asked == 0


async def test_a_core_is_asked_until_its_grammars_are_compiled() -> None:
    client = FakeClient([[4.0, 0, 1, 0.5]], [[0.0, 0, 2, 5.0]])
    report = CompileReport()
    report.expect()
    report.look(client)
    await settle()
    assert report.look(client) == Compiles(4.0, 0, 1, 0.5)
    await settle()
    for _ in range(3):
        assert report.look(client) == Compiles(0.0, 0, 2, 5.0)
        await settle()
    assert client.asked == 2


async def test_a_request_that_comes_while_the_core_answers_is_asked_for_too() -> None:
    client, report = FakeClient([[0.0, 0, 0, 0.0]], [[0.0, 0, 1, 1.0]]), CompileReport()
    report.expect()
    report.look(client)
    report.expect()
    await settle()
    report.look(client)
    await settle()
    assert client.asked == 2


async def test_a_frozen_core_is_asked_once() -> None:
    client, report = FakeClient(), CompileReport()
    report.expect()
    for _ in range(3):
        report.look(client)
        report.expect()
        await settle()
    assert client.asked == 1
    assert report._asking is not None
    report._asking.cancel()


async def test_a_core_that_fails_to_answer_does_no_harm() -> None:
    report = CompileReport()
    report.expect()
    report.look(FakeClient([["what"]]))
    await settle()
    assert report.look(FakeClient()) == Compiles()


def test_the_ranks_of_an_engine_count_together() -> None:
    states = [PoolState(1.0, 1, 2, 0.3), PoolState(4.0, 0, 3, 0.1)]
    assert combined(states) == Compiles(4.0, 1, 5, 0.3)
