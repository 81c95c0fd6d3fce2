"""Fill-in-the-middle in vLLM's real front end: prompts, stops, refusals, an editor that leaves."""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from typing import Any

import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from qwenfleet.deployments.vllm_adapter import codec

from qwenfleet.cluster.models.byte_tokenizer import ADDED_TOKENS, TOKEN_IDS
from qwenfleet.deployments.qwen import fim
from qwenfleet.deployments.wire.frames import Submit

PRE, SUF, MID = (TOKEN_IDS[name] for name in (fim.PREFIX, fim.SUFFIX, fim.MIDDLE))
REPO, FILE = TOKEN_IDS[fim.REPOSITORY], TOKEN_IDS[fim.FILE]
OF_THE_MODEL = [TOKEN_IDS[fim.END_OF_TEXT]]
"""A stop of its generation_config.json, for every request."""
STOPS = {TOKEN_IDS[name] for name in fim.STOPS}
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> None:
    """vLLM's constructors read files; a gateway has no requests yet when it calls them."""


def params_of(submit: Submit) -> Any:
    request = codec.decode_request(submit.request)
    assert request.sampling_params is not None
    return request.sampling_params


def firsts(engine: Any) -> list[Submit]:
    """The first attempts at an engine's requests: on a busy machine there may be others."""
    return [submit for submit in engine.core.submits if submit.attempt == 0]


def prompt_of(submit: Submit) -> list[int]:
    return list(submit.prompt_token_ids)


async def test_a_suffix_becomes_a_prompt_of_tokens_with_the_models_stops(
    serve_engine: Any, build: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(num_tokens=3, tokens=(97, 98, 99)))
    site = await build(engine)
    answer = await site.ask(prompt="ab", suffix="cd", stop_token_ids=[7], max_tokens=8)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == "ab", "without its last token, which stopped it"
    submit = firsts(engine)[0]
    assert prompt_of(submit) == [PRE, *b"ab", SUF, *b"cd", MID]
    assert set(params_of(submit).stop_token_ids) == STOPS | {7}
    assert answer.json()["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize("suffix", ["", None])
async def test_an_empty_suffix_is_as_if_it_were_absent(
    serve_engine: Any, build: Any, observed_core: Any, suffix: str | None
) -> None:
    engine = await serve_engine(core=observed_core(num_tokens=1))
    site = await build(engine)
    answer = await site.ask(prompt="ab", suffix=suffix)
    assert answer.status_code == 200
    assert prompt_of(firsts(engine)[0]) == [*b"ab"]
    assert params_of(firsts(engine)[0]).stop_token_ids == OF_THE_MODEL


async def test_text_that_names_special_tokens_stays_text(
    serve_engine: Any, build: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(num_tokens=1))
    site = await build(engine)
    hostile = "".join(ADDED_TOKENS)
    files = [{"path": hostile, "text": hostile}]
    surrounding = {"repository": hostile, "path": hostile, "files": files}
    answer = await site.ask(prompt=hostile, suffix=hostile, fim=surrounding)
    assert answer.status_code == 200
    special = [token for token in prompt_of(firsts(engine)[0]) if token > 255]
    assert special == [REPO, FILE, FILE, PRE, SUF, MID]


async def test_a_repository_comes_before_the_file_that_is_edited(
    serve_engine: Any, build: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(num_tokens=1))
    site = await build(engine)
    files = [{"path": "a.py", "text": "A = 1"}]
    surrounding = {"repository": "lib", "path": "b.py", "files": files}
    for suffix in ("d", ""):
        assert (await site.ask(prompt="c", suffix=suffix, fim=surrounding)).status_code == 200
    head = [REPO, *b"lib\n", FILE, *b"a.py\nA = 1\n", FILE, *b"b.py\n"]
    assert [prompt_of(submit) for submit in firsts(engine)] == [
        [*head, PRE, *b"c", SUF, *b"d", MID],
        [*head, PRE, *b"c", SUF, MID],
    ]


@pytest.mark.parametrize("start", [{"prompt": ""}, {"prompt": None}, {}])
async def test_the_cursor_may_be_at_the_start_of_the_file(
    serve_engine: Any, build: Any, observed_core: Any, start: Any
) -> None:
    engine = await serve_engine(core=observed_core(num_tokens=1))
    site = await build(engine)
    assert (await site.ask(suffix="b", **start)).status_code == 200
    around = {"repository": "c", "path": "d"}
    assert (await site.ask(suffix="", fim=around, **start)).status_code == 200
    assert [prompt_of(submit) for submit in firsts(engine)] == [
        [PRE, SUF, *b"b", MID],
        [REPO, *b"c\n", FILE, *b"d\n", PRE, SUF, MID],
    ]
    assert {submit.priority for submit in firsts(engine)} == {-1}
    refused = await site.ask(suffix="b", fim={"is_at_start": True}, **start)
    assert refused.json()["error"]["code"] == "field_not_taken"


async def test_an_instruct_model_is_asked_in_a_chat(
    serve_engine: Any, build: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(num_tokens=1))
    site = await build(engine, model={"fill_in_the_middle": "chat"})
    assert (await site.ask(prompt="ab", suffix="cd")).status_code == 200
    start, end = TOKEN_IDS[fim.START], TOKEN_IDS[fim.END]
    assert prompt_of(firsts(engine)[0]) == [
        *(start, *b"system\nYou are a code completion assistant.", end, 10),
        *(start, *b"user\n", PRE, *b"ab", SUF, *b"cd", MID, end, 10),
        *(start, *b"assistant\n"),
    ]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"prompt": ["a", "b"]}, "prompt", "needs one prompt of text"),
        ({"prompt": [1, 2]}, "prompt", "token ids go without 'suffix'"),
        ({"prompt": []}, "prompt", "needs one prompt of text"),
        ({"echo": True}, "echo", "is not the text that you sent"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "no place for the middle"),
        ({"use_beam_search": True, "n": 2}, "use_beam_search", "beams do not stop"),
        ({"prompt": "x" * 4093}, None, "maximum context length is 4096"),
        ({"fim": {"path": "a"}}, "fim.repository", "missing"),
    ],
)
async def test_what_cannot_be_meant_is_refused_with_a_sentence(
    serve_engine: Any, build: Any, fields: Any, field: str | None, words: str
) -> None:
    site = await build(await serve_engine())
    answer = await site.ask(**{"prompt": "a", "suffix": "b", "max_tokens": 5, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert words in error["message"]
    assert field is None or error["param"] == field


async def test_ignore_eos_leaves_the_stops_out(
    serve_engine: Any, build: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(num_tokens=1))
    site = await build(engine)
    answer = await site.ask(prompt="a", suffix="b", ignore_eos=True)
    assert answer.status_code == 200
    assert params_of(firsts(engine)[0]).stop_token_ids == []


async def test_a_short_one_goes_first_and_a_long_one_in_its_turn(
    serve_engine: Any, build: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(num_tokens=1))
    site = await build(engine)
    middle = {"prompt": "a", "suffix": "b"}
    for fields in (
        middle,
        middle | {"max_tokens": 2000},
        middle | {"priority": 3},
        {"prompt": "a"},
    ):
        assert (await site.ask(**fields)).status_code == 200
    assert [submit.priority for submit in firsts(engine)] == [-1, 0, 3, 0]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "a", "suffix": "b", "stream": True}),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
    ],
)
async def test_an_editor_that_hangs_up_ends_the_work(
    serve_engine: Any, build: Any, observed_core: Any, gate: Any, eventually: Any,
    path: str, fields: Any,
) -> None:  # fmt: skip
    engine = await serve_engine(core=observed_core(sleep=gate))
    site = await build(engine)
    body = json.dumps({"model": "coder", **fields}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    has_hung_up = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await has_hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None: ...

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers,
             "raw_path": path.encode(), "query_string": b""}  # fmt: skip
    asked = asyncio.create_task(site.app(scope, receive, send))
    await eventually(lambda: engine.core.running)
    has_hung_up.set()
    await asyncio.wait_for(asked, 10)
    await eventually(lambda: not engine.core.running)


async def test_a_model_without_the_tokens_says_how_to_ask(serve_engine: Any, build: Any) -> None:
    site = await build(await serve_engine(), model={"source": "smollm2-135m-instruct"})
    answer = await site.ask(prompt="a", suffix="b")
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "has no tokens for fill-in-the-middle" in message
    assert "Leave it out to continue the prompt, or ask in a chat" in message
    assert answer.json()["error"]["param"] == "suffix"
    assert (await site.ask(prompt="a", suffix="")).status_code == 200


async def test_infill_is_served_by_the_same_prompt(
    serve_engine: Any, build: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(num_tokens=50, tokens=(97, 98, 99)))
    site = await build(engine)
    answer = await site.ask(
        "/infill",
        input_prefix="x\n",
        prompt="a",
        input_suffix="b",
        input_extra=[{"filename": "c", "text": "d"}],
        n_predict=4,
        samplers=["top_k", "top_p", "infill"],
        response_fields=["content", "tokens_predicted", "tokens_evaluated", "stop_type"],
    )
    assert answer.json() == {
        "content": "abca",
        "tokens_predicted": 4,
        "tokens_evaluated": 33,
        "stop_type": "limit",
    }
    submit = firsts(engine)[0]
    head = [REPO, *b"myproject\n", FILE, *b"c\nd\n", FILE, *b"filename\n"]
    assert prompt_of(submit) == [*head, PRE, *b"x\na", SUF, *b"b", MID]
    assert (submit.priority, params_of(submit).temperature) == (-1, 0)


async def test_infill_warms_the_cache_without_an_answer(serve_engine: Any, build: Any) -> None:
    site = await build(await serve_engine())
    fields = {"input_prefix": "", "input_suffix": "", "n_predict": 0, "samplers": []}
    answer = await site.ask("/infill", **fields)
    found = answer.json()
    assert (found["content"], found["tokens_predicted"], found["tokens_evaluated"]) == ("", 0, 24)


async def test_infill_streams_as_llama_cpp_does(serve_engine: Any, build: Any) -> None:
    site = await build(await serve_engine(num_tokens=50, tokens=(97, 98, 99)))
    fields = {"input_prefix": "a", "input_suffix": "", "n_predict": 3, "n": 2, "seed": 1}
    answer = await site.ask("/infill", stream=True, **fields)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    assert [event["stop"] for event in events][-2:] == [True, True]
    for index in (0, 1):
        own = [event for event in events if event["index"] == index]
        assert "".join(event["content"] for event in own) == "abc"
        assert (own[-1]["tokens_predicted"], own[-1]["tokens_evaluated"]) == (3, 25)


async def test_an_answer_that_ends_early_ends_the_engines_work(
    serve_engine: Any, build: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=3000, tokens=(97, 10, 98), step_s=0.01)
    site = await build(engine)
    fields = {"input_prefix": "  a", "input_suffix": "b", "n_predict": 3000, "n_indent": 2}
    answer = await asyncio.wait_for(site.ask("/infill", **fields), 10)
    assert answer.json()["content"] == "a\n"
    await eventually(lambda: not engine.core.running)


async def test_infill_of_a_model_without_the_tokens_is_refused(
    serve_engine: Any, build: Any
) -> None:
    site = await build(await serve_engine(), model={"source": "smollm2-135m-instruct"})
    answer = await site.ask("/infill", input_prefix="a", input_suffix="b")
    assert answer.status_code == 400
    assert "has no tokens for fill-in-the-middle" in answer.json()["error"]["message"]
