"""vLLM's real front end over scripted engines: limits, arguments, and failures of its handler."""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from typing import Any

import httpx
import pytest
import tokenizers.decoders

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import xgrammar
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState


pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> None:
    """vLLM's constructors read files; a gateway has no requests yet when it calls them."""


def events_of(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.splitlines() if line]


async def test_the_front_ends_limit_is_the_least_of_its_engines_and_follows_them(
    serve_engine: Any, build: Any, eventually: Any
) -> None:
    large = await serve_engine(limits={"max_model_len": 512})
    site = await build(large)
    prompt = [1] * 300
    assert (await site.ask(prompt=prompt, max_tokens=4)).status_code == 200
    small = await serve_engine(engine="engine-2", limits={"max_model_len": 256})

    site.records.append(small.record)
    await eventually(lambda: site.dispatcher.num_engines == 2)
    answer = await site.ask(prompt=prompt, max_tokens=4)
    assert answer.status_code == 400
    assert "maximum context length is 256" in answer.text
    await small.kill()
    await eventually(lambda: site.dispatcher.num_engines == 1)
    assert (await site.ask(prompt=prompt, max_tokens=4)).status_code == 200


async def test_a_request_that_raced_with_a_smaller_engine_gets_a_readable_400(
    serve_engine: Any, build: Any
) -> None:
    site = await build(await serve_engine(limits={"max_model_len": 256}))
    site.front_end.llm.model_config.max_model_len = 512  # the news is not here yet
    answer = await site.ask(prompt=[1] * 300, max_tokens=4)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_one_output_that_cannot_be_processed_ends_its_request_only(
    serve_engine: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await build(await serve_engine(num_tokens=60, step_s=0.01))
    original = RequestState.make_request_output

    def make_request_output(state: RequestState, *arguments: Any, **keywords: Any) -> Any:
        made = state.detokenizer.num_output_tokens() if state.detokenizer else 0
        if state.prompt_token_ids == [7, 7] and made > 5:
            raise ZeroDivisionError("a bug")
        return original(state, *arguments, **keywords)

    monkeypatch.setattr(RequestState, "make_request_output", make_request_output)
    asked = {"max_tokens": 60, "stream": True}
    odd, whole, kept = await asyncio.gather(
        site.ask(prompt=[7, 7], **asked),
        site.ask(prompt=[7, 7], max_tokens=60),
        site.ask(prompt=[8, 8], **asked),
    )
    *tokens, error = events_of(odd)
    assert tokens
    assert json.loads(error)["error"]["code"] == "internal_error"
    assert "[DONE]" not in odd.text
    assert whole.status_code == 500
    assert events_of(kept)[-1] == "[DONE]"
    assert "error" not in kept.text
    assert not site.front_end.is_errored
    assert not site.front_end.llm.output_processor.request_states
    assert (await site.ask(prompt=[9], max_tokens=3)).status_code == 200


async def test_when_the_handler_ends_each_stream_gets_one_error_and_no_done(
    serve_engine: Any, build: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    site = await build(await serve_engine(num_tokens=1000, step_s=0.01))
    asked = [
        asyncio.create_task(site.ask(prompt=[i], max_tokens=1000, stream=True)) for i in (1, 2)
    ]
    await eventually(lambda: len(site.front_end.llm.output_processor.request_states) == 2)
    await asyncio.sleep(0.1)

    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(OutputProcessor, "update_scheduler_stats", fail)
    for answer in await asyncio.gather(*asked):
        assert json.loads(events_of(answer)[-1])["error"]["code"] == "internal_error"
        assert answer.text.count('"error"') == 1
        assert "[DONE]" not in answer.text
    assert site.front_end.is_errored
    assert (await site.ask(prompt=[3], max_tokens=3)).status_code == 500


async def test_a_failure_to_count_ends_no_stream(
    serve_engine: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await build(await serve_engine())

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    (stats,) = site.front_end.llm.logger_manager.stat_loggers
    monkeypatch.setattr(type(stats).__mro__[1], "record", fail)
    assert (await site.ask(prompt=[3], max_tokens=3)).status_code == 200
    assert not site.front_end.is_errored


async def test_more_logprobs_than_usual_are_allowed_if_engine_args_say_so(
    serve_engine: Any, build: Any
) -> None:
    engine = await serve_engine()
    chat = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 25}
    usual = await build(engine)
    refused = await usual.ask("/v1/chat/completions", **chat)
    assert (refused.status_code, "above the limit of 20" in refused.text) == (400, True)
    site = await build(engine, max_logprobs=25)
    site.front_end.llm.input_processor.process_inputs(
        "x", {"type": "token", "prompt_token_ids": [1]}, params(logprobs=25), ("generate",)
    )
    assert site.front_end.llm.model_config.max_logprobs == 25


async def test_a_reasoning_parser_splits_reasoning_from_the_answer(
    serve_engine: Any, build: Any
) -> None:
    plain = await build(await serve_engine())
    ids = plain.tokenizer.encode("<think>because</think>so", add_special_tokens=False)
    engine = await serve_engine(engine="engine-2", tokens=(*ids, 0), num_tokens=len(ids) + 1)
    site = await build(engine, reasoning_parser="qwen3")
    answer = await site.ask("/v1/chat/completions", messages=[{"role": "user", "content": "x"}])
    message = answer.json()["choices"][0]["message"]
    assert "because" in str(message.get("reasoning") or message.get("reasoning_content"))
    assert message["content"] == "so"


async def test_the_first_token_after_a_long_prompt_does_not_decode_the_prompt_again(
    serve_engine: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole prompt would be decoded on the loop, for each of `n` answers."""
    lengths: list[int] = []
    streams = tokenizers.decoders.DecodeStream

    def record(ids: Any = None, skip_special_tokens: bool = False) -> Any:
        lengths.append(len(ids or ()))
        return streams(ids=ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(tokenizers.decoders, "DecodeStream", record)
    site = await build(await serve_engine())
    answer = await site.ask(prompt=[5] * 1000, max_tokens=4, n=2)
    assert answer.status_code == 200
    assert lengths
    assert max(lengths) <= 32


async def test_stream_interval_sends_several_tokens_at_a_time(
    serve_engine: Any, build: Any
) -> None:
    engine = await serve_engine(num_tokens=40, step_s=0.002)
    site = await build(engine, stream_interval=10)
    answer = await site.ask(prompt=[5], max_tokens=40, stream=True)
    assert 4 <= len(events_of(answer)) <= 7, "of 40 tokens"


async def test_structured_outputs_and_the_servers_own_arguments_reach_the_front_end(
    serve_engine: Any, build: Any
) -> None:
    site = await build(
        await serve_engine(),
        structured_outputs_config={"disable_any_whitespace": True},
        default_chat_template_kwargs={"enable_thinking": False},
        spec_method="ngram",
        spec_tokens=2,
    )
    llm = site.front_end.llm
    assert llm.vllm_config.structured_outputs_config.disable_any_whitespace is True
    assert llm.vllm_config.structured_outputs_config.backend == "xgrammar"
    assert site.front_end.app.inner.state.args.default_chat_template_kwargs == {
        "enable_thinking": False
    }
    refused = await site.ask(prompt=[5], max_tokens=4, min_p=0.2)
    assert (refused.status_code, "speculative decoding" in refused.text) == (400, True)


def params(**fields: Any) -> Any:
    from vllm.sampling_params import SamplingParams

    return SamplingParams(**fields)


SELF: dict[str, Any] = {"$ref": "#"}
"""A schema that no text matches."""
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SELF, "strict": True}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SELF, "strict": True}}
CHAT = {"messages": [{"role": "user", "content": "x"}]}
HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    # Route, body, and what the answer says.
    ("/v1/chat/completions", {**CHAT, "response_format": FORMAT}, "no token can follow"),
    (
        "/v1/chat/completions",
        {**CHAT, "tools": [TOOL], "tool_choice": "required"},
        "the tool 'f' is strict",
    ),
    (
        "/v1/responses",
        {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": SELF}}},
        "no token can follow",
    ),
    (
        "/v1/messages",
        {
            **CHAT,
            "max_tokens": 4,
            "tools": [{"name": "f", "input_schema": SELF, "strict": True}],
            "tool_choice": {"type": "tool", "name": "f"},
        },
        "the tool 'f' is strict",
    ),
    (
        "/v1/completions",
        {"prompt": [1], "structured_outputs": {"choice": [str(i) for i in range(50_000)]}},
        "",
    ),
    (
        "/v1/completions",
        {"prompt": [1], "structured_outputs": {"grammar": 'root ::= "' + "a" * 2**21 + '"'}},
        "",
    ),
    (
        "/v1/completions",
        {"prompt": [1], "structured_outputs": {"grammar": "root ::= root root | root"}},
        "no token can follow",
    ),
    (
        "/v1/completions",
        {"prompt": [1], "structured_outputs": {"regex": "((a{1,100}){1,100}){1,100}"}},
        "takes an engine too long",
    ),
    (
        "/v1/completions",
        {"prompt": [1], "structured_outputs": {"json": {"enum": list(range(5001))}}},
        "JSON schema has 5001 choices",
    ),
]


async def test_a_hostile_grammar_is_refused_on_every_route_before_an_engine_gets_it(
    serve_engine: Any, build: Any
) -> None:
    engine = await serve_engine(num_tokens=3)
    site = await build(engine)
    for path, body, words in HOSTILE:
        whole = await site.ask(path, **body)
        assert whole.status_code in (400, 413), (path, whole.text[:300])
        assert words in whole.text, (path, whole.text[:300])
        stream = await site.ask(path, stream=True, **body)
        assert words in stream.text, (path, stream.text[:300])
    assert engine.core.names == set()
    assert (await site.ask(prompt=[1], max_tokens=3)).status_code == 200


async def test_the_front_end_reads_no_grammar_on_its_loop(
    serve_engine: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await build(await serve_engine(num_tokens=3))

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("on the loop")

    for name in ("from_ebnf", "from_regex", "from_json_schema", "from_structural_tag"):
        monkeypatch.setattr(xgrammar.Grammar, name, read)
    for constraint in (
        {"json": {"type": "object"}},
        {"regex": "a+"},
        {"choice": ["a", "b"]},
        {"grammar": 'root ::= "a"'},
        {"structural_tag": json.dumps({"type": "structural_tag", "format": {"type": "any_text"}})},
    ):
        answer = await site.ask(prompt=[1], max_tokens=3, structured_outputs=constraint)
        assert answer.status_code == 200, answer.text


async def test_a_schema_with_what_xgrammar_ignores_is_refused_and_changes_no_backend(
    serve_engine: Any, build: Any
) -> None:
    site = await build(await serve_engine(num_tokens=3))
    schema = {"type": "array", "items": {}, "uniqueItems": True}
    refused = await site.ask(prompt=[1], max_tokens=3, structured_outputs={"json": schema})
    assert (refused.status_code, "not supported by xgrammar" in refused.text) == (400, True)


async def test_a_chat_that_asks_for_no_length_gets_the_models_or_what_the_context_leaves(
    serve_engine: Any, build: Any
) -> None:
    engine = await serve_engine(limits={"max_model_len": 256})
    sampling = {"temperature": 0.3, "min_p": 0, "max_tokens": 100}
    site = await build(engine, model={"sampling": sampling})
    assert site.front_end.default_parameters == sampling
    lengths = []
    for body in (CHAT, CHAT | {"max_tokens": 120}, CHAT | {"messages": [long_message(200)]}):
        assert (await site.ask("/v1/chat/completions", **body)).status_code == 200
        lengths.append(engine.core.submits[-1].max_tokens)
    assert lengths[:2] == [100, 120]
    assert 1 <= lengths[2] < 56
    for path, body in (("/v1/responses", {"input": "Hi"}), ("/v1/completions", {"prompt": "Hi"})):
        assert (await site.ask(path, **body)).status_code == 200
        lengths.append(engine.core.submits[-1].max_tokens)
    assert lengths[3:] == [100, 16]  # OpenAI's default of completions


def long_message(chars: int) -> dict[str, Any]:
    return {"role": "user", "content": "x" * chars}
