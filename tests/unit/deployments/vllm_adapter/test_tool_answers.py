"""Tool calls through the three APIs: the scripted engine says what a case says, vLLM's own servers
answer, whole and streamed."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from functools import partial
from typing import Any

import msgspec
import pytest

from qwenfleet.cluster.config.model import ModelConfig, ScriptConfig
from qwenfleet.cluster.labels import FinishReason
from qwenfleet.cluster.models.byte_tokenizer import ADDED_TOKENS, TOKEN_IDS
from qwenfleet.deployments.engine_host.scripted_core import ScriptedCore
from qwenfleet.deployments.wire.frames import Output, Submit
from tests.tool_calls.case import Case
from tests.tool_calls.corpus import CASES
from tests.unit.deployments.vllm_adapter.tool_readers import APIS, CHAT, Api, Read, events

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

TOOLS = {
    "run": {
        "type": "object",
        "properties": {"cmd": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["cmd"],
    },
    "now": {"type": "object"},
}
OPEN = "<tool_call>\n<function=run>\n<parameter=cmd>\n"
CALL = f"{OPEN}ls\n</parameter>\n</function>\n</tool_call>"
_TAGS = re.compile(
    "|".join(re.escape(token) for token, is_special in ADDED_TOKENS.items() if not is_special)
)


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> None:
    """vLLM's constructors read files; a gateway has no requests yet when it calls them."""


def tokens_of(text: str) -> list[int]:
    """The byte tokenizer's tokens, with tags as the single tokens that they are."""
    found: list[int] = []
    at = 0
    for tag in _TAGS.finditer(text):
        found += text[at : tag.start()].encode()
        found.append(TOKEN_IDS[tag[0]])
        at = tag.end()
    return [*found, *text[at:].encode()]


class SayingCore(ScriptedCore):
    """Says what a request asks for by number, several tokens at a time, or one at each `sleep`."""

    def __init__(self, says: list[str], sleep: Any = None) -> None:
        model = ModelConfig(
            id="coder", engine="scripted", script=ScriptConfig(step_s=0, num_tokens=1)
        )
        super().__init__(model, sleep or asyncio.sleep)
        self._sizes = (1, 1, 1, 2, 40) if sleep is None else (1,)
        self.says = says
        self._tokens: dict[str, list[int]] = {}
        self._random = random.Random(18)

    async def add(self, wire_id: str, submit: Submit) -> None:
        await super().add(wire_id, submit)
        prompt = bytes(token for token in submit.prompt_token_ids if token < 256).decode()
        number, end = re.findall(r"say (\d+) and (stop|length)", prompt)[-1]
        tokens = tokens_of(self.says[int(number)])
        play = self._plays[wire_id]
        play.end_reason = FinishReason.LENGTH
        if end == "stop":
            tokens.append(TOKEN_IDS["<|im_end|>"])
            play.end_reason = FinishReason.STOP
        self._tokens[wire_id], play.end = tokens, len(tokens)

    def _advance(self, wire_id: str, play: Any) -> Output[str]:
        at = play.position
        most = self._random.choice(self._sizes)
        play.position = min(at + most, play.end) - 1
        output = super()._advance(wire_id, play)
        tokens = self._tokens[wire_id][at : play.position]
        return msgspec.structs.replace(output, token_ids=tokens)


@pytest.fixture
def saying(serve_engine: Any) -> Any:
    """Start an engine for long answers."""
    numbers = itertools.count(1)

    def start(core: SayingCore) -> Any:
        name = f"engine-{next(numbers)}"
        return serve_engine(core=core, engine=name, limits={"max_model_len": 16_384})

    return start


async def answered(
    site: Any, api: Api, index: int, *, end: str, stream: bool, **fields: Any
) -> Read:
    """Ask for a text by number. `tools` may be among the fields."""
    tools = fields.pop("tools", TOOLS)
    body = {**api.body(f"say {index} and {end}", tools), **fields, "stream": stream}
    if not tools:
        del body["tools"]
    answer = await site.ask(api.path, **body)
    assert answer.status_code == 200, answer.text
    return (api.streamed if stream else api.whole)(answer)


@pytest.mark.parametrize("name", APIS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_was_cut_is_reported_as_cut(
    saying: Any, build: Any, name: str, stream: bool
) -> None:
    api = APIS[name]
    says = [f"{OPEN}ls -", f"{CALL}{OPEN}ls -", CALL, "<tool_call>", f"a {CALL} b"]
    site = await build(await saying(SayingCore(says)))
    for end, cut, text in (
        ("stop", api.cut_by_stop, api.stopped),
        ("length", api.cut_by_length, api.length),
    ):
        reads = [await answered(site, api, i, end=end, stream=stream) for i in range(len(says))]
        ends = [api.called if end == "stop" else text] * 2
        assert [read.end for read in reads] == [cut, cut, ends[0], text, ends[1]]
        partial = "{}" if name == "messages" and not stream else '{"cmd": "ls -'
        whole = ("run", '{"cmd": "ls"}')
        assert [read.calls for read in reads] == [
            [("run", partial)], [whole, ("run", partial)], [whole], [], [whole],
        ]  # fmt: skip
        assert [read.text for read in reads] == ["", "", "", "<tool_call>", "ab"]


@pytest.mark.parametrize("name", APIS)
@pytest.mark.parametrize("stream", [False, True])
async def test_text_stays_text_without_tools_or_with_tool_choice_none(
    saying: Any, build: Any, name: str, stream: bool
) -> None:
    api = APIS[name]
    site = await build(await saying(SayingCore([f"\n{CALL}\n "])))
    none = {"type": "none"} if name == "messages" else "none"
    chosen: tuple[dict[str, Any], ...] = ({"tools": {}}, {"tool_choice": none})
    for fields in chosen:
        read = await answered(site, api, 0, end="length", stream=stream, **fields)
        assert (read.text, read.calls, read.end) == (f"\n{CALL}\n ", [], api.length)


@pytest.mark.parametrize("name", APIS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_forced_answer_that_is_cut_in_the_head_of_a_call_has_no_text(
    saying: Any, build: Any, name: str, stream: bool
) -> None:
    """The markers come in plain characters, as a grammar may spell them."""
    api = APIS[name]
    site = await build(await saying(SayingCore([f"{CALL}\n<tool_call>\n<function=", "<tool_ca"])))
    chosen = {"type": "any"} if name == "messages" else "required"
    for index, calls in enumerate(([("run", '{"cmd": "ls"}')], [])):
        read = await answered(site, api, index, end="length", stream=stream, tool_choice=chosen)
        assert (read.text, read.calls, read.end) == ("", calls, api.length)


@pytest.mark.parametrize("stream", [False, True])
async def test_allowed_tools_are_read_as_all_others(saying: Any, build: Any, stream: bool) -> None:
    site = await build(await saying(SayingCore([f"Look.\n{CALL}"])))
    for mode in ("auto", "required"):
        allowed = {
            "type": "allowed_tools",
            "mode": mode,
            "tools": [{"type": "function", "name": "run"}],
        }
        read = await answered(
            site, APIS["responses"], 0, end="stop", stream=stream, tool_choice=allowed
        )
        assert (read.text, read.calls) == ("Look.", [("run", '{"cmd": "ls"}')])


async def test_an_answer_without_the_call_that_was_required_is_not_one_with_calls(
    saying: Any, build: Any
) -> None:
    site = await build(await saying(SayingCore(["just text"])))
    for name in ("chat", "messages"):
        api = APIS[name]
        chosen = {"type": "any"} if name == "messages" else "required"
        for stream in (False, True):
            read = await answered(site, api, 0, end="stop", stream=stream, tool_choice=chosen)
            assert (read.text, read.calls, read.end) == ("just text", [], api.stopped)


async def test_a_second_call_that_is_cut_and_not_sent_changes_no_end(
    saying: Any, build: Any
) -> None:
    site = await build(await saying(SayingCore([f"{CALL}{OPEN}ls -"])))
    for stream in (False, True):
        read = await answered(site, CHAT, 0, end="stop", stream=stream, parallel_tool_calls=False)
        assert (read.calls, read.end) == ([("run", '{"cmd": "ls"}')], "tool_calls")


async def test_a_custom_tool_whose_call_is_cut_gets_no_half_of_its_json(
    saying: Any, build: Any
) -> None:
    cut = "<tool_call>\n<function=shout>\n<parameter=input>\nabc"
    site = await build(await saying(SayingCore([cut])))
    body = {"input": "say 0 and stop", "tools": [{"type": "custom", "name": "shout"}]}
    whole = await site.ask("/v1/responses", **body)
    assert [item["input"] for item in whole.json()["output"]] == ["abc"]
    streamed = await site.ask("/v1/responses", **body, stream=True)
    done = [event for event in events(streamed) if event["type"] == "response.output_item.done"]
    assert [event["item"]["input"] for event in done] == ["abc"]


async def test_a_reasoning_parser_keeps_what_comes_with_a_call(saying: Any, build: Any) -> None:
    site = await build(
        await saying(SayingCore([f"<think>hmm</think>\n\nI see.\n{CALL}\nbye <"])),
        reasoning_parser="qwen3",
    )
    for stream in (False, True):
        read = await answered(site, APIS["responses"], 0, end="stop", stream=stream)
        assert read.calls == [("run", '{"cmd": "ls"}')]
        assert read.text.replace("\n", "") in ("I see.bye <", "I see. bye <"), read.text


async def test_ids_differ_and_the_first_piece_of_a_call_has_empty_arguments(
    saying: Any, build: Any
) -> None:
    site = await build(await saying(SayingCore([f"{CALL}\n{CALL}\n{OPEN}pwd"])))
    read = await answered(site, CHAT, 0, end="stop", stream=True)
    assert len(set(read.ids)) == 3
    assert all(isinstance(first, str) for first in read.first_arguments)
    assert '""' in json.dumps(read.first_arguments)


async def test_one_call_only_if_parallel_calls_are_off(saying: Any, build: Any) -> None:
    site = await build(await saying(SayingCore([f"{CALL}\n{CALL}"])))
    for name in ("chat", "responses"):
        for stream in (False, True):
            read = await answered(
                site, APIS[name], 0, end="stop", stream=stream, parallel_tool_calls=False
            )
            assert read.calls == [("run", '{"cmd": "ls"}')]


async def test_many_streams_at_once_do_not_mix(saying: Any, build: Any) -> None:
    says = [f"{OPEN}{'x' * i}\n</parameter>\n</function>\n</tool_call>" for i in range(20)]
    site = await build(await saying(SayingCore(says)))
    reads = await asyncio.gather(
        *(answered(site, CHAT, i, end="stop", stream=True) for i in range(20))
    )
    assert [read.calls for read in reads] == [
        [("run", json.dumps({"cmd": "x" * i}))] for i in range(20)
    ]


async def test_a_stream_that_resumes_at_any_token_goes_on_inside_its_call(
    saying: Any, build: Any, eventually: Any, new_gate: Any
) -> None:
    say = (
        "I see.\n<tool_call>\n<function=run>\n<parameter=cmd>\na </x>\n</parameter>\n"
        "<parameter=n>\n42\n</parameter>\n</function>\n</tool_call>\n"
        '<tool_call>\n{"name": "run", "arguments": {"cmd": "b"}}\n</tool_call>'
    )
    undisturbed = await saying(SayingCore([say]))
    site = await build(undisturbed)
    expected = await answered(site, CHAT, 0, end="stop", stream=True)
    assert [name for name, _ in expected.calls] == ["run", "run"]
    await undisturbed.kill()
    for count in range(1, len(tokens_of(say))):
        gate, following = new_gate(), new_gate()
        following.open()
        first, second = [await saying(SayingCore([say], each)) for each in (gate, following)]
        await _meet(site, eventually, first)
        asked = asyncio.create_task(answered(site, CHAT, 0, end="stop", stream=True))
        gate.step(count)
        await eventually(partial(_has_received, site, count))
        await _meet(site, eventually, first, second)
        await first.kill()
        read = await asked
        assert (read.text, read.calls, read.end) == (expected.text, expected.calls, expected.end)
        await second.kill()


async def _meet(site: Any, eventually: Any, *engines: Any) -> None:
    """Connect the gateway to these engines and to no others."""
    site.records[:] = [engine.record for engine in engines]
    links = site.dispatcher._roster._links
    names = {engine.record.id for engine in engines}
    await eventually(lambda: {name for name, link in links.items() if link.is_open} == names)


def _has_received(site: Any, count: int) -> bool:
    return [len(flight.token_ids) for flight in site.dispatcher._flights.values()] == [count]


def _expected_end(api: Api, case: Case) -> str:
    if case.calls and not case.calls[-1].is_complete:
        return api.cut_by_stop
    return api.called if case.calls else api.stopped


def _same(read: Read, case: Case, *, has_objects: bool) -> bool:
    """Whether an answer has the calls of a case. A message that came whole has objects, which lose
    what was cut."""
    if [name for name, _ in read.calls] != [call.name for call in case.calls]:
        return False
    for (_, text), call in zip(read.calls, case.calls, strict=True):
        if call.is_complete:
            if json.loads(text) != call.arguments:
                return False
        elif has_objects:
            json.loads(text)
        elif text != call.arguments:
            return False
    return True


def _is_rendered(case: Case) -> bool:
    """Whether the test model's template, which lists each schema's members, can show the tools."""
    schemas = [
        schema
        for parameters in case.tools.values()
        for schema in ((parameters or {}).get("properties") or {}).values()
    ]
    return all(isinstance(schema, dict) for schema in schemas)


@pytest.mark.parametrize(
    ("name", "parser"), [*((name, "qwen3_coder") for name in APIS), ("chat", "hermes")]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_api_answers_the_corpus(
    saying: Any, build: Any, name: str, parser: str, stream: bool
) -> None:
    api = APIS[name]
    cases = [case for case in CASES if len(case.output) < 8_000 and _is_rendered(case)]
    assert len(cases) > 200
    core = SayingCore([case.output for case in cases])
    site = await build(await saying(core), model={"tool_call_parser": parser})
    place = asyncio.Semaphore(16)

    async def wrong(index: int, case: Case) -> str:
        async with place:
            read = await answered(site, api, index, end="stop", stream=stream, tools=case.tools)
        has_objects = name == "messages" and not stream
        expected = (case.text.strip(), _expected_end(api, case))
        is_right = (read.text.strip(), read.end) == expected
        is_right = is_right and _same(read, case, has_objects=has_objects)
        return "" if is_right else f"{case.name}: {read}"

    found = await asyncio.gather(*(wrong(i, case) for i, case in enumerate(cases)))
    assert "\n".join(filter(None, found)) == ""
