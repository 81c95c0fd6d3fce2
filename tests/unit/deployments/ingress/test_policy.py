"""Tests what a request may ask for, and that a body can raise nothing but an error for clients."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress import policy, request_fields
from qwenfleet.deployments.ingress.errors import MalformedBody, RequestError
from qwenfleet.deployments.ingress.field_errors import FieldError, NotTaken, OutOfBounds, WrongValue
from qwenfleet.deployments.ingress.http_app import MODEL_ROUTES

LIMITS = LimitsConfig()
CHAT = "/v1/chat/completions"
CONTEXT = 4096
MESSAGE = {"role": "user", "content": "hello"}


def judge(route: str = CHAT, context_tokens: int | None = CONTEXT, **body: Any) -> None:
    fields = policy.read(json.dumps(body).encode(), LIMITS)
    policy.check(route, fields, LIMITS, context_tokens)


def refused(route: str = CHAT, context_tokens: int | None = CONTEXT, **body: Any) -> FieldError:
    with pytest.raises(FieldError) as caught:
        judge(route, context_tokens, **body)
    assert len(str(caught.value)) < 400, "an error repeats 64 characters of a value"
    return caught.value


def schema(properties: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {} for i in range(properties)}}


def tool(schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


def call(arguments: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}


LARGE = [
    ("n", {"n": 10_000}),
    ("n", {"n": "10000"}),
    ("n", {"n": 33.0}),
    ("n", {"n": 2**70}),
    ("n", {"n": 30, "prompt": ["a"] * 100}),
    ("n", {"use_beam_search": True, "n": 9, "max_tokens": 9}),
    ("max_tokens", {"use_beam_search": True, "n": 2, "max_tokens": 100_000}),
    ("max_tokens", {"use_beam_search": True, "max_completion_tokens": 1, "max_tokens": 100_000}),
    ("prompt", {"prompt": ["a"] * 129}),
    ("prompt", {"prompt": [[1]] * 129}),
    ("messages", {"messages": [MESSAGE] * 4097}),
    ("input", {"input": [MESSAGE] * 2049}),
    ("tools", {"tools": [tool({})] * 513}),
    ("tools[1]", {"tools": [tool({}), tool(schema(9000))]}),
    ("logprobs", {"logprobs": 21}),
    ("top_logprobs", {"top_logprobs": 21}),
    ("prompt_logprobs", {"prompt_logprobs": 21}),
    ("logprob_token_ids", {"logprob_token_ids": [1] * 21}),
    ("logit_bias", {"logit_bias": {str(i): 1 for i in range(1025)}}),
    ("allowed_token_ids", {"allowed_token_ids": [1] * 1025}),
    ("stop_token_ids", {"stop_token_ids": [1] * 129}),
    ("stop", {"stop": "x" * 1025}),
    ("stop", {"stop": ["x" * 600] * 2}),
    ("stop_sequences", {"stop_sequences": ["x" * 1025]}),
    ("bad_words", {"bad_words": ["x"] * 65}),
    ("bad_words", {"bad_words": ["x" * 11_000] * 60}),
    ("structured_outputs.choice", {"structured_outputs": {"choice": ["a"] * 50_000}}),
    ("structured_outputs.grammar", {"structured_outputs": {"grammar": "x" * 2_000_000}}),
    ("structured_outputs.regex", {"structured_outputs": {"regex": "x" * 5000}}),
    ("structured_outputs.json", {"structured_outputs": {"json": schema(30_000)}}),
    ("structured_outputs.json", {"structured_outputs": {"json": "[" * 99 + "]" * 99}}),
    (
        "structured_outputs.structural_tag",
        {"structured_outputs": {"structural_tag": "x" * 300_000}},
    ),
    ("response_format", {"response_format": {"json_schema": {"schema": schema(30_000)}}}),
    ("response_format", {"response_format": {"json_schema": {"schema": {"enum": [1] * 200_000}}}}),
    ("text", {"text": {"format": {"schema": schema(30_000)}}}),
    ("output_config", {"output_config": {"format": {"schema": schema(30_000)}}}),
    ("repetition_detection.max_pattern_size", {"repetition_detection": {"max_pattern_size": 1e9}}),
    ("repetition_detection.min_count", {"repetition_detection": {"min_count": 2**40}}),
    ("request_id", {"request_id": "x" * 4_000_000}),
    ("session_id", {"session_id": "x" * 129}),
    ("user", {"user": "x" * 129}),
    ("metadata", {"metadata": {"a": "x" * 20_000}}),
    ("chat_template_kwargs", {"chat_template_kwargs": {"a": [1] * 300}}),
    ("vllm_xargs", {"vllm_xargs": {str(i): 1 for i in range(300)}}),
    ("top_k", {"top_k": 2**70}),
    ("min_tokens", {"min_tokens": 2**31}),
    ("seed", {"seed": 2**63}),
    (
        "messages[1].tool_calls[0].function.arguments",
        {"messages": [MESSAGE, call("[" * 1200 + "]" * 1200)]},
    ),
    ("input[0].arguments", {"input": [{"arguments": '{"a":' * 99 + "1" + "}" * 99}]}),
]


@pytest.mark.parametrize(("field", "body"), LARGE, ids=lambda value: str(value)[:40])
def test_a_value_or_size_above_its_bound_is_a_400_that_names_the_field(
    field: str, body: dict[str, Any]
) -> None:
    error = refused(**body)
    assert isinstance(error, OutOfBounds)
    assert (error.status, error.field) == (400, field)
    assert f"'{field}'" in str(error)
    assert f"the limit of {error.bound}" in str(error)


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("top_k", {"top_k": -2}),
        ("logprobs", {"logprobs": -1}),
        ("priority", {"priority": -1}),
    ],
)
def test_a_value_below_its_bound_is_a_400_too(field: str, body: dict[str, Any]) -> None:
    error = refused(**body)
    assert (error.status, error.field) == (400, field)
    assert "below the limit" in str(error)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": "many"}, "n"),
        ({"n": [1]}, "n"),
        ({"n": "9" * 100}, "n"),
        ({"structured_outputs": 5}, "structured_outputs"),
        ({"structured_outputs": "json"}, "structured_outputs"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"response_format": []}, "response_format"),
        ({"stream_options": 1}, "stream_options"),
        ({"messages": 5}, "messages"),
        ({"tools": 5}, "tools"),
        ({"stop": [5]}, "stop"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"use_beam_search": True}, "max_tokens"),
        ({"request_id": 5}, "request_id"),
    ],
)
def test_a_value_of_the_wrong_kind_is_a_400_that_says_which_is_right(
    body: dict[str, Any], field: str
) -> None:
    error = refused(**body)
    assert isinstance(error, WrongValue)
    assert (error.status, error.field) == (400, field)


@pytest.mark.parametrize("value", ["x", {"do_remote_prefill": True}, 5])
@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
def test_clients_cannot_tell_an_engine_where_to_fetch_kv_cache(name: str, value: Any) -> None:
    assert isinstance(refused(**{name: value}), NotTaken)
    assert refused(vllm_xargs={name: value}).field == f"vllm_xargs.{name}"


@pytest.mark.parametrize("value", ["inf", "-Infinity", " nan ", " " * 40 + "-inf", "1" + "0" * 400])
def test_a_number_that_is_not_finite_is_refused(value: str) -> None:
    assert refused(length_penalty=value).field == "length_penalty"
    judge(length_penalty="1.5")


ORDINARY = [
    {
        "messages": [MESSAGE] * 1000,
        "n": 8,
        "temperature": 0.5,
        "max_tokens": 100_000,
        "stream": True,
    },
    {"messages": [MESSAGE], "logprobs": True, "top_logprobs": 20, "stop": ["\n", "END"], "seed": 7},
    {
        "messages": [call('{"path": "a.py"}')],
        "tools": [tool(schema(40))] * 100,
        "tool_choice": "auto",
    },
    {"prompt": list(range(4000)), "echo": True, "logprobs": 5, "logit_bias": {"7": -100}},
    {"prompt": ["a"] * 128, "n": None, "user": None, "stop": None, "response_format": None},
    {"prompt": "x", "use_beam_search": True, "n": 4, "max_tokens": 100, "kv_transfer_params": None},
    {"input": "x", "text": {"format": {"type": "json_schema", "schema": schema(100)}}},
    {"input": [MESSAGE], "metadata": {"a": "b"}, "priority": 5, "request_id": "resp_1"},
    {
        "structured_outputs": {"choice": ["yes", "no"]},
        "messages": [MESSAGE],
        "kv_transfer_params": {},
    },
    {"messages": "vLLM says what is wrong"},
]


@pytest.mark.parametrize("body", ORDINARY, ids=lambda body: next(iter(body)))
def test_what_people_send_is_taken(body: dict[str, Any]) -> None:
    judge(**body)


def test_a_setting_moves_its_bound() -> None:
    policy.check(CHAT, {"n": 100, "priority": -3}, LimitsConfig(n=100, lowest_priority=-3))
    with pytest.raises(OutOfBounds, match=r"limit of 2\..*gateway\.limits\.n"):
        policy.check(CHAT, {"n": 3}, LimitsConfig(n=2))


# The size of a whole body.


@pytest.mark.parametrize(
    ("body", "setting"),
    [
        (b'{"messages": [' + b'{"role":"user","content":"x"},' * 200_000 + b"1]}", "body_values"),
        (b'{"a": [' + b"[]," * 1_300_000 + b"1]}", "body_values"),
        (b'{"prompt": [' + b"1," * 3_000_000 + b"1]}", "token_ids"),
    ],
    ids=["200,000 messages", "empty lists", "numbers"],
)
def test_a_body_with_too_many_values_is_a_413_before_it_is_parsed(
    body: bytes, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(msgspec.json, "decode")
    with pytest.raises(OutOfBounds) as caught:
        policy.read(body, LIMITS)
    assert (caught.value.status, caught.value.setting) == (413, setting)


@pytest.mark.parametrize("levels", [97, 1000, 500_000])
def test_json_nested_too_deep_is_a_400(levels: int) -> None:
    body = b'{"a":' + b"[" * levels + b"]" * levels + b"}"
    with pytest.raises(RequestError) as caught:
        policy.read(body, LIMITS)
    assert caught.value.status in {400, 413}
    assert b"[" not in str(caught.value).encode()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b'"x"', b'{"a": NaN}', b"\xff", b"{'a': 1}"]
)
def test_a_body_that_is_no_json_object_is_a_400(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        policy.read(body, LIMITS)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/tokenize", {"prompt": "x" * 40_000}),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * 40_000}]}),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40_000}]}]},
        ),
        (CHAT, {"messages": [MESSAGE], "tools": [tool({"description": "x" * 40_000})]}),
        ("/v1/messages", {"system": "x" * 20_000, "messages": [{"content": "x" * 20_000}]}),
        ("/v1/responses", {"input": "x", "instructions": "x" * 40_000}),
        ("/v1/completions", {"prompt": ["x" * 400] * 100}),
    ],
)
def test_text_that_cannot_fit_is_a_400_before_it_is_tokenized(
    route: str, body: dict[str, Any]
) -> None:
    error = refused(route, **body)
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert "maximum context length is 4096" in str(error)
    judge(route, 1_000_000, **body)
    judge(route, None, **body)


@pytest.mark.parametrize(
    ("route", "field"), [("/v1/completions", "prompt"), ("/detokenize", "tokens")]
)
def test_more_token_ids_than_the_context_are_refused(route: str, field: str) -> None:
    too_many: dict[str, Any] = {field: [1] * 4097}
    assert refused(route, **too_many).field == field
    as_many: dict[str, Any] = {field: [1] * 4096}
    judge(route, **as_many)


def test_a_prompt_that_vllm_will_truncate_may_be_longer() -> None:
    judge("/v1/completions", prompt=[1] * 5000, truncate_prompt_tokens=-1)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "data: " + "x " * 50_000},
        {"messages": [{"role": "user", "content": "data:" + "x " * 50_000}]},
        {"messages": [{"role": "user", "content": [{"input": {"x" * 100_000: 1}}]}]},
    ],
)
def test_no_text_passes_as_an_image_or_a_name(body: dict[str, Any]) -> None:
    assert refused("/v1/messages", **body).code == "context_length_exceeded"


def test_images_do_not_count_as_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    judge(messages=[{"role": "user", "content": [image]}])


# Anything.

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(("content", "tool_calls", "function", "json", "a")), inner
        )
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(
    st.sampled_from((*sorted(request_fields.FIELDS), *sorted(request_fields.HARMLESS), "unknown")),
    VALUES,
)


def outcome(body: bytes, route: str = CHAT, context_tokens: int | None = CONTEXT) -> int:
    """Return the status with which a body is refused; 0 if it is not. Raises what is a bug."""
    try:
        policy.check(route, policy.read(body, LIMITS), LIMITS, context_tokens)
    except RequestError as error:
        return error.status if len(str(error)) < 400 else -1
    return 0


@settings(max_examples=500)
@given(st.sampled_from(sorted(MODEL_ROUTES)), BODIES, st.sampled_from((None, 1, 4096)))
def test_no_body_raises_anything_but_a_short_error_for_clients(
    route: str, body: dict[str, Any], context_tokens: int | None
) -> None:
    assert outcome(json.dumps(body).encode(), route, context_tokens) in {0, 400, 413}


@given(st.binary(max_size=80), st.binary(max_size=20))
def test_no_bytes_raise_anything_but_a_short_error_for_clients(start: bytes, end: bytes) -> None:
    for body in (start, b'{"prompt": ' + start + b"}", start * 50 + end):
        assert outcome(body) in {0, 400, 413}
