"""The clients that people use, unchanged: the OpenAI and Anthropic Python SDKs."""

from __future__ import annotations

import json
import subprocess
import sys

import anthropic
import openai
import pytest

pytestmark = pytest.mark.integration

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": PARAMETERS,
}
ANTHROPIC_TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": PARAMETERS,
}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
REVERSE = [{"role": "user", "content": "Write a Python function that reverses a string"}]


@pytest.fixture
def openai_client(fleet):
    with openai.OpenAI(
        base_url=f"{fleet.url}/v1", api_key="none", timeout=300, max_retries=0
    ) as client:
        yield client


@pytest.fixture
def anthropic_client(fleet):
    with anthropic.Anthropic(
        base_url=fleet.url, api_key="none", timeout=300, max_retries=0
    ) as client:
        yield client


def test_the_default_model_writes_python_that_works(openai_client):
    answer = openai_client.chat.completions.create(
        model="smollm2", messages=REVERSE, temperature=0, max_tokens=200
    )
    text = answer.choices[0].message.content
    code = text.split("```python")[1].split("```")[0]
    name = code.split("def ")[1].split("(")[0]
    run = subprocess.run(
        [sys.executable, "-I", "-c", f"{code}\nassert {name}('abcd') == 'dcba'"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert run.returncode == 0, text + run.stderr


@pytest.mark.parametrize("model", ["smollm2", "tiny", "scripted"])
def test_a_streamed_answer_is_the_plain_one_in_pieces(openai_client, model):
    request = {"model": model, "messages": REVERSE, "temperature": 0, "max_tokens": 24}
    plain = openai_client.chat.completions.create(**request)
    chunks = list(
        openai_client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]

    assert "".join(pieces) == plain.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens == 24
    assert chunks[-1].usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("model", ["smollm2", "tiny"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_required_tool_is_called_with_valid_arguments(openai_client, model, stream):
    tool = {"type": "function", "function": FUNCTION | {"strict": model == "tiny"}}
    request = {
        "model": model, "messages": ASK, "tools": [tool], "tool_choice": "required",
        "temperature": 0, "max_tokens": 600,
    }  # fmt: skip
    if stream:
        deltas = [
            call
            for chunk in openai_client.chat.completions.create(**request, stream=True)
            for call in (chunk.choices[0].delta.tool_calls or ())
            if call.index == 0
        ]
        name = next(delta.function.name for delta in deltas if delta.function.name)
        arguments = "".join(delta.function.arguments or "" for delta in deltas)
    else:
        answer = openai_client.chat.completions.create(**request)
        call = answer.choices[0].message.tool_calls[0].function
        name, arguments = call.name, call.arguments

    assert name == "get_weather"
    # Values in Qwen's XML calls may stand between spaces, which random weights make use of.
    assert json.loads(arguments)["city"].strip() in ("Paris", "Rome")


def test_responses_stream_to_their_end(openai_client):
    events = list(
        openai_client.responses.create(
            model="tiny", input="Hello", max_output_tokens=8, stream=True, temperature=0
        )
    )

    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.usage.output_tokens == 8


def test_anthropic_messages_come_plain_and_streamed(anthropic_client):
    request = {
        "model": "tiny", "max_tokens": 12, "messages": REVERSE, "extra_body": {"temperature": 0},
    }  # fmt: skip
    plain = anthropic_client.messages.create(**request)
    with anthropic_client.messages.stream(**request) as stream:
        streamed = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert streamed == plain.content[0].text
    assert final.usage.output_tokens == plain.usage.output_tokens == 12
    assert final.stop_reason == "max_tokens"


def test_anthropic_tools_are_called(anthropic_client):
    answer = anthropic_client.messages.create(
        model="smollm2", max_tokens=300, messages=ASK, tools=[ANTHROPIC_TOOL],
        tool_choice={"type": "any"}, extra_body={"temperature": 0},
    )  # fmt: skip
    calls = [block for block in answer.content if block.type == "tool_use"]

    assert calls[0].name == "get_weather"
    assert calls[0].input["city"] in ("Paris", "Rome")


def test_anthropic_tokens_are_counted_as_they_are_billed(anthropic_client):
    counted = anthropic_client.messages.count_tokens(model="tiny", messages=REVERSE)
    answer = anthropic_client.messages.create(model="tiny", max_tokens=1, messages=REVERSE)

    assert counted.input_tokens == answer.usage.input_tokens


def test_the_sdks_raise_their_own_errors(openai_client, anthropic_client):
    with pytest.raises(openai.NotFoundError, match="smollm2"):
        openai_client.chat.completions.create(model="gpt-5", messages=ASK)
    with pytest.raises(anthropic.NotFoundError, match="smollm2"):
        anthropic_client.messages.create(model="claude", max_tokens=5, messages=ASK)
