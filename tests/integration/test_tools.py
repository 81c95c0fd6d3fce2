"""Tool calls from real engines, held by grammars: every choice, strict or not, on each API."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import pytest

pytestmark = pytest.mark.integration

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
UNKNOWN_REGEX = {
    "type": "object",
    "properties": {"id": {"type": "string", "pattern": r"^(?=.*\d)\p{L}+\b$"}},
    "required": ["id"],
}
CONTAINS = {
    "type": "object",
    "properties": {
        "tags": {
            "type": "array",
            "items": {"enum": ["a", "b"]},
            "maxItems": 2,
            "contains": {"const": "a"},
            "minContains": 1,
        }
    },
    "required": ["tags"],
}
SCHEMAS = {"weather": WEATHER, "now": EMPTY, "find": UNKNOWN_REGEX, "tag": CONTAINS}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
MODELS = ("tiny", "smollm2")
"""Calls in XML and in JSON."""


def tool(name: str, strict: bool | None = None) -> dict[str, Any]:
    function = {"name": name, "description": name, "parameters": SCHEMAS[name]}
    return {
        "type": "function",
        "function": function if strict is None else function | {"strict": strict},
    }


def ask(fleet, path: str = "/v1/chat/completions", **body) -> httpx.Response:
    chosen = {"temperature": 0, "max_tokens": 300} | body
    return httpx.post(f"{fleet.url}{path}", json=chosen, timeout=300)


def choice_of(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def calls_of(choice: Any) -> list[tuple[str, Any]]:
    calls = choice["message"].get("tool_calls") or []
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["weather", "now"])
@pytest.mark.parametrize("named", [False, True])
def test_a_forced_strict_call_follows_its_schema(fleet, model, name, named):
    chosen = {"type": "function", "function": {"name": name}} if named else "required"
    tools = [tool(name, strict=True), *([tool("tag")] if named else [])]
    answer = ask(
        fleet, model=model, messages=ASK, tools=tools, tool_choice=chosen, parallel_tool_calls=False
    )
    choice = choice_of(answer)
    found = calls_of(choice)
    assert {called for called, _ in found} == {name}
    for _, arguments in found:
        jsonschema.validate(arguments, SCHEMAS[name])
    assert not (choice["message"]["content"] or "").strip()
    assert choice["finish_reason"] == ("stop" if named else "tool_calls")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("odd", ["find", "tag"])
def test_a_tool_with_what_no_grammar_holds_does_not_break_the_others(fleet, model, odd):
    tools = [tool("weather", strict=True), tool(odd)]
    named = {"type": "function", "function": {"name": "weather"}}
    for chosen in (named, "required", "auto"):
        answer = ask(fleet, model=model, messages=ASK, tools=tools, tool_choice=chosen)
        choice = choice_of(answer)
        if chosen == named:
            assert [name for name, _ in calls_of(choice)] == ["weather"]
        elif chosen == "required":
            assert choice["message"]["tool_calls"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("odd", ["find", "tag"])
def test_a_strict_tool_with_what_no_grammar_holds_is_refused_by_name(fleet, model, odd):
    for path, body in (
        ("/v1/chat/completions", {"messages": ASK, "tools": [tool(odd, strict=True)]}),
        (
            "/v1/responses",
            {"input": "x", "tools": [{"type": "function", **tool(odd, strict=True)["function"]}]},
        ),
        (
            "/v1/messages",
            {
                "messages": ASK,
                "tools": [{"name": odd, "input_schema": SCHEMAS[odd], "strict": True}],
            },
        ),
    ):
        body = {"model": model, "max_tokens": 5, **body}
        answer = httpx.post(f"{fleet.url}{path}", json=body, timeout=60)
        assert answer.status_code == 400, (path, answer.text)
        assert f"'{odd}'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("model", MODELS)
def test_tool_choice_none_and_auto_leave_text_free(fleet, model):
    for chosen in ("none", "auto"):
        answer = ask(
            fleet, model=model, messages=ASK, tools=[tool("weather")], tool_choice=chosen,
            max_tokens=20,
        )  # fmt: skip
        choice = choice_of(answer)
        if chosen == "none":
            assert calls_of(choice) == []
            assert choice["message"]["content"]


@pytest.mark.parametrize("model", MODELS)
def test_forced_calls_of_the_other_apis(fleet, model):
    answer = ask(
        fleet, "/v1/messages", model=model, messages=ASK, tool_choice={"type": "any"},
        tools=[{"name": "weather", "description": "", "input_schema": WEATHER, "strict": True}],
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    blocks = answer.json()["content"]
    assert {block["type"] for block in blocks} == {"tool_use"}
    for block in blocks:
        jsonschema.validate(block["input"], WEATHER)
    body = {
        "model": model,
        "input": "What is the weather in Paris?",
        "tool_choice": "required",
        "max_output_tokens": 300,
        "temperature": 0,
        "tools": [{"type": "function", **tool("weather", strict=True)["function"]}],
    }
    answer = httpx.post(f"{fleet.url}/v1/responses", json=body, timeout=300)
    items = [item for item in answer.json()["output"] if item["type"] == "function_call"]
    assert items
    for item in items:
        jsonschema.validate(json.loads(item["arguments"]), WEATHER)
