"""The process that compiles grammars: what hostile ones cost it, and that it lives on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
import warnings
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import xgrammar

from qwenfleet.cluster.local import request_memory
from qwenfleet.deployments.vllm_adapter.grammar_compiler import (
    WORKING_FACTOR,
    Settings,
    Verdict,
    verdict,
)
from qwenfleet.deployments.vllm_adapter.grammar_process import CompilerLost, GrammarProcess

pytestmark = pytest.mark.timeout(120)

COMPILE_S = 0.5
MEMORY_BYTES = 64 * 2**20
WORDS = random.Random(0)
VOCABULARY = [b"<end>", *(bytes([i]) for i in range(256))] + [
    bytes(WORDS.choices(b"abcdefghijklmnop 0123", k=WORDS.randint(2, 6))) for _ in range(4000)
]


@pytest_asyncio.fixture
async def process() -> AsyncIterator[GrammarProcess]:
    info = xgrammar.TokenizerInfo(VOCABULARY, stop_token_ids=[0])
    made = GrammarProcess(Settings(info.serialize_json()))
    yield made
    made.close()


async def compile_one(process: GrammarProcess, syntax: str, text: str) -> Verdict:
    return await process.run(syntax, text, COMPILE_S, MEMORY_BYTES)


def choices(number: int) -> str:
    spread = random.Random(1)
    return "root ::= " + " | ".join(f'"{spread.randbytes(6).hex()}"' for _ in range(number))


def long_grammar(number: int) -> str:
    spread = random.Random(2)
    return "root ::= " + " ".join(f'"{spread.randbytes(8).hex()}"' for _ in range(number))


TOOL = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "lines": {"type": "array", "items": {"type": "integer"}},
        "mode": {"enum": ["read", "write"]},
    },
    "required": ["path"],
}
TAGS = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags",
        "triggers": ["<tool_call>"],
        "tags": [
            {
                "begin": "<tool_call>",
                "content": {"type": "json_schema", "json_schema": TOOL},
                "end": "</tool_call>",
            }
        ],
    },
}
GOOD = [
    ("json", json.dumps(TOOL)),
    ("json", '{"type": "object"}'),
    ("json", json.dumps({"type": "object", "properties": {"next": {"$ref": "#"}}})),
    ("regex", r"[\w.-]+@[\w.-]+\.\w+"),
    ("regex", ""),
    ("regex", "(a+)+b"),
    ("ebnf", 'root ::= "yes" | "no"'),
    ("ebnf", 'root ::= "(" root ")" | "x"'),
    ("lark", 'start: word (" " word)*\nword: WORD\nWORD: /[a-z]+/'),
    ("structural_tag", json.dumps(TAGS)),
]
HOSTILE = [
    ("ebnf", choices(50_000), "compile_s"),
    ("ebnf", long_grammar(100_000), "compile_s"),
    ("ebnf", "root ::= root root | root", "dead_end"),
    ("json", '{"$ref": "#"}', "dead_end"),
    ("ebnf", 'root ::= "a" x\nx ::= x', "dead_end"),
    ("ebnf", 'root ::= root root | "a"', "steps"),
    ("ebnf", "root ::= item+\nitem ::= [a-z]+", "steps"),
    ("regex", "((a{1,100}){1,100}){1,100}", "steps"),
    ("regex", "(.*)*.*.*.*.*.*.*.*.*.*x", "steps"),
    ("ebnf", 'root ::= (("a"{1,1000}){1,1000}){1,1000}', "steps"),
    ("ebnf", "root ::=", "invalid"),
    ("regex", "(", "invalid"),
    ("json", '{"type": "string", "pattern": "("}', "invalid"),
    ("structural_tag", '{"type": "structural_tag", "format": {"type": "odd"}}', "invalid"),
    ("ebnf", "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000, "invalid"),
]


@pytest.mark.parametrize(("syntax", "text"), GOOD, ids=lambda value: value[:30])
async def test_what_people_send_passes(process: GrammarProcess, syntax: str, text: str) -> None:
    assert await compile_one(process, syntax, text) == Verdict(1, "ok")


async def test_hostile_grammars_are_refused_each_for_its_reason_and_the_process_lives_on(
    process: GrammarProcess,
) -> None:
    for syntax, text, outcome in HOSTILE:
        began_at = time.monotonic()
        found = await compile_one(process, syntax, text)
        assert found.end == outcome, (text[:40], found, time.monotonic() - began_at)
    pid = process._process.pid if process._process else 0
    assert psutil.Process(pid).children() == []
    assert (await compile_one(process, *GOOD[0])).end == "ok"
    assert process._process is not None
    assert process._process.pid == pid


async def test_a_hostile_grammar_keeps_no_other_waiting(process: GrammarProcess) -> None:
    await process.start()
    hostile = asyncio.create_task(process.run("ebnf", choices(50_000), 20.0, MEMORY_BYTES))
    await asyncio.sleep(0.2)
    assert (await compile_one(process, *GOOD[0])).end == "ok"
    assert not hostile.done()
    process.close()
    hostile.cancel()


async def test_the_memory_of_a_grammar_is_bounded(process: GrammarProcess) -> None:
    small = await process.run("ebnf", choices(5_000), 20.0, 2**20)
    assert small.end == "memory"


async def test_the_process_is_small_and_has_one_thread(process: GrammarProcess) -> None:
    await process.start()
    assert process._process is not None
    found = psutil.Process(process._process.pid)
    assert found.num_threads() == 1, "it forks"
    assert found.memory_full_info().uss < 100 * 2**20


async def test_a_process_that_was_killed_is_started_again(process: GrammarProcess) -> None:
    await process.start()
    assert process._process is not None
    hostile = asyncio.create_task(process.run("ebnf", choices(50_000), 20.0, MEMORY_BYTES))
    await asyncio.sleep(0.1)
    process._process.kill()
    with pytest.raises(CompilerLost):
        await hostile
    assert (await compile_one(process, *GOOD[0])).end == "ok"


async def test_closing_ends_the_process_and_what_it_compiles(process: GrammarProcess) -> None:
    await process.start()
    assert process._process is not None
    parent = psutil.Process(process._process.pid)
    hostile = asyncio.create_task(process.run("ebnf", choices(50_000), 1.0, MEMORY_BYTES))
    while not (children := parent.children()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    process.close()
    assert not parent.is_running()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 15)
    assert alive == []
    hostile.cancel()


@pytest.mark.parametrize(
    ("written", "status", "outcome"),
    [
        (b"compiled\t\nok\t\n", 0, "ok"),
        (b"compiled\t\n", signal.SIGPROF, "steps"),
        (b"compiled\t\n", signal.SIGKILL, "killed"),
        (b"", signal.SIGPROF, "compile_s"),
        (b"", signal.SIGSEGV, "crash"),
        (b"compiled\t\n", signal.SIGABRT, "crash"),
        (b"", 256, "crash"),
    ],
)
def test_how_a_child_ended_says_what_is_wrong(written: bytes, status: int, outcome: str) -> None:
    assert verdict(7, written, status).end == outcome
    assert os.WIFSIGNALED(status) == (status not in (0, 256))


def test_the_chart_counts_the_memory_that_a_child_may_use() -> None:
    """The compiler imports no configuration, which would be larger than itself."""
    assert request_memory.GRAMMAR_ROOM == WORKING_FACTOR
