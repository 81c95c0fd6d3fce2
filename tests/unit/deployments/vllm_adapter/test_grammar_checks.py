"""Checks of grammars over a fake compiler: what is remembered, who waits, and what clients read."""

from __future__ import annotations

import asyncio

import pytest

from qwenfleet.cluster.config.grammar import GrammarConfig
from qwenfleet.deployments.ingress.errors import GatewayFailed
from qwenfleet.deployments.ingress.grammar_errors import (
    GrammarChecksBusy,
    GrammarInvalid,
    GrammarTooCostly,
)
from qwenfleet.deployments.vllm_adapter.grammar_checks import (
    MOST_SLOW,
    MOST_WAITING,
    QUICK_S,
    REMEMBERED,
    TRIES,
    GrammarChecks,
)
from qwenfleet.deployments.vllm_adapter.grammar_compiler import Verdict
from qwenfleet.deployments.vllm_adapter.grammar_process import CompilerLost
from qwenfleet.deployments.vllm_adapter.grammar_size import Kind


class FakeProcess:
    """Takes as long as the text says, and answers with the outcome that it names."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, float]] = []
        self.losses = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.slow = asyncio.Event()
        self.slow.set()

    async def start(self) -> None: ...

    async def run(self, syntax: str, text: str, compile_s: float, memory_bytes: int) -> Verdict:
        self.runs.append((text, compile_s))
        await self.gate.wait()
        if compile_s > QUICK_S:
            await self.slow.wait()
        if self.losses:
            self.losses -= 1
            raise CompilerLost("it ended")
        outcome, _, needs_s = text.partition(" ")
        if needs_s and float(needs_s) > compile_s:
            return Verdict(1, "compile_s")
        return Verdict(1, outcome, "why")

    def close(self) -> None: ...


@pytest.fixture
def process() -> FakeProcess:
    return FakeProcess()


@pytest.fixture
def checks(process: FakeProcess) -> GrammarChecks:
    return GrammarChecks(GrammarConfig(compile_s=2.0), process)


async def check(checks: GrammarChecks, text: str) -> None:
    await checks.check(Kind.GRAMMAR, "ebnf", text)


async def test_a_verified_grammar_is_compiled_once(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    for _ in range(3):
        await check(checks, "ok")
    assert process.runs == [("ok", QUICK_S)]


async def test_a_refused_grammar_costs_nothing_the_second_time(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    for _ in range(3):
        with pytest.raises(GrammarTooCostly, match="takes longer to compile, above the limit of 2"):
            await check(checks, "ok 9.0")
    assert len(process.runs) == 2


async def test_equal_grammars_at_once_are_compiled_once(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    await asyncio.gather(*(check(checks, "ok") for _ in range(10)))
    assert len(process.runs) == 1


async def test_the_same_text_in_another_syntax_is_another_grammar(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    await check(checks, "ok")
    await checks.check(Kind.REGEX, "regex", "ok")
    assert len(process.runs) == 2


async def test_a_grammar_that_needs_long_gets_all_of_its_time_after_the_quick_ones(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    await check(checks, "ok 1.5")
    assert process.runs == [("ok 1.5", QUICK_S), ("ok 1.5", 2.0)]


async def test_slow_grammars_take_few_of_the_places(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    process.slow.clear()
    slow = [asyncio.create_task(check(checks, f"ok 1.{i:02}")) for i in range(MOST_SLOW)]
    while len(process.runs) < MOST_SLOW + 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    with pytest.raises(GrammarChecksBusy, match=f"{MOST_SLOW} new grammars"):
        await check(checks, "ok 1.99")
    await check(checks, "ok")
    process.slow.set()
    await asyncio.gather(*slow)
    await check(checks, "ok 1.99")  # what was refused for a lack of places is not remembered


async def test_nothing_is_compiled_for_clients_that_have_left(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    process.slow.clear()
    slow = [asyncio.create_task(check(checks, f"ok 1.{i:02}")) for i in range(MOST_SLOW)]
    while len(process.runs) < MOST_SLOW + 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    process.slow.set()
    await check(checks, "ok 1.99")
    assert len(process.runs) == MOST_SLOW + 3


async def test_a_compiler_that_the_kernel_ends_says_nothing_of_the_grammar(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    for _ in range(2):
        with pytest.raises(GatewayFailed):
            await check(checks, "killed")
    assert len(process.runs) == 2 * TRIES


async def test_slow_grammars_do_not_keep_quick_ones_waiting(process: FakeProcess) -> None:
    checks = GrammarChecks(GrammarConfig(compile_s=2.0, workers=1), process)
    slow = asyncio.create_task(check(checks, "ok 1.5"))
    while len(process.runs) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    process.slow.clear()
    others = [asyncio.create_task(check(checks, f"ok 1.{i}")) for i in range(5)]
    await check(checks, "ok 0.1")
    process.slow.set()
    await asyncio.gather(slow, *others)
    assert [text for text, compile_s in process.runs if compile_s == 2.0].count("ok 1.5") == 1


async def test_a_client_that_leaves_does_not_end_the_check_of_others(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    process.gate.clear()
    first, second = (asyncio.create_task(check(checks, "ok")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    process.gate.set()
    await second
    assert len(process.runs) == 1


async def test_too_many_new_grammars_are_refused_and_known_ones_are_not(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    await check(checks, "ok")
    process.gate.clear()
    waiting = [asyncio.create_task(check(checks, f"ok 0.{i}")) for i in range(MOST_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(GrammarChecksBusy) as caught:
        await check(checks, "ok 0")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 5)
    await check(checks, "ok")
    process.gate.set()
    await asyncio.gather(*waiting)


async def test_what_is_remembered_is_bounded_and_keeps_what_is_used(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    await check(checks, "ok")
    for i in range(REMEMBERED - 1):
        await check(checks, f"ok 0.{i:05}1")
    await check(checks, "ok")
    await check(checks, "ok 0")
    del process.runs[:]
    await check(checks, "ok")
    assert process.runs == []
    await check(checks, "ok 0.000001")
    assert len(process.runs) == 1, "it was the oldest"


async def test_a_process_that_ended_is_tried_once_more(
    checks: GrammarChecks, process: FakeProcess
) -> None:
    process.losses = 1
    await check(checks, "ok")
    process.losses = 2
    with pytest.raises(GatewayFailed):
        await check(checks, "ok 0")
    await check(checks, "ok 0")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("invalid", "grammar cannot be used: why. Correct it."),
        ("dead_end", "no token can follow after why of them"),
        ("steps", "takes an engine too long"),
        ("crash", "it crashes the compiler (why)"),
    ],
)
async def test_a_grammar_without_use_is_the_clients_fault(
    checks: GrammarChecks, outcome: str, words: str
) -> None:
    with pytest.raises(GrammarInvalid) as caught:
        await check(checks, outcome)
    assert words in str(caught.value)


async def test_a_compiled_grammar_that_is_too_large_names_its_limit(checks: GrammarChecks) -> None:
    with pytest.raises(
        GrammarTooCostly, match=r"above the limit of 32 MiB \(gateway.grammar.max_c"
    ):
        await check(checks, "memory")
