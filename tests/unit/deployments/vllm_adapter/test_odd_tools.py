"""Tools whose schemas no grammar holds, and what many tools cost the gate."""

from __future__ import annotations

import json
import os
import random
import time
import warnings
from typing import Any

import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import xgrammar
    from vllm.exceptions import VLLMValidationError
    from vllm.tool_parsers.tool_strict_level import ToolStrictLevel

    from qwenfleet.deployments.vllm_adapter import tool_tags

from qwenfleet.deployments.qwen.held_schema import Within, what_holds
from qwenfleet.deployments.vllm_adapter.error_answers import refusal_of
from qwenfleet.deployments.vllm_adapter.grammar_compiler import Settings
from qwenfleet.deployments.vllm_adapter.grammar_process import GrammarProcess
from qwenfleet.deployments.vllm_adapter.xml_arguments import arguments_of
from tests.unit.deployments.vllm_adapter.tool_grammars import (
    CALLS,
    EDIT,
    HERMES,
    ODD,
    XML,
    answers,
    hermes,
    request_of,
    tag_of,
    tool,
    xml,
)

MOST_S = 5.0
COMPILE_S = 4.0
"""Twice the default of `gateway.grammar.compile_s`, for a busy machine."""
WORDS = random.Random(0)
LETTERS = b'abcdefghijklmnopqrstuvwxyz 0123<>/="{}._\n'
VOCABULARY = [b"<end>", *(bytes([i]) for i in range(256))] + [
    bytes(WORDS.choices(LETTERS, k=WORDS.randint(2, 8))) for _ in range(100_000)
]


@CALLS
@pytest.mark.parametrize("level", list(ToolStrictLevel))
@pytest.mark.parametrize("strict", [True, None])
def test_an_odd_schema_is_held_as_far_as_it_can_be_and_breaks_no_other(
    model: str, call: Any, level: ToolStrictLevel, strict: bool | None
) -> None:
    allows = answers(tag_of(model, tool("odd", ODD), tool("edit", EDIT, strict), level=level))
    assert allows(call("edit", path="a", line=1))
    assert allows(call("odd", title="anything", items=[1]))
    is_held = level == ToolStrictLevel.PARAMETER
    assert allows(call("odd", items=[1])) == (not is_held)
    assert allows(call("odd", title="x", items=["x"])) == (not is_held)
    assert allows(call("edit", path="a", line="x")) == (not is_held and not strict)


HOSTILE = [
    True,
    False,
    {"type": "text"},
    {"type": "array", "items": [{"type": "integer"}]},
    {"properties": {"a": False, "b": None, "c": "string"}, "required": ["a"]},
    {"$ref": "#"},
    {"$ref": "#/$defs/missing"},
    {"type": "object", "properties": {"a": {"enum": []}, "b": {"minimum": 2, "maximum": 1}}},
    {"type": "object", "patternProperties": {"\\bx": {}, "(": {}}},
    {"type": "object", "required": "a", "minProperties": 9, "maxProperties": -1},
]


@CALLS
@pytest.mark.parametrize("parameters", HOSTILE, ids=lambda each: json.dumps(each)[:50])
def test_no_schema_breaks_the_other_tools(model: str, call: Any, parameters: Any) -> None:
    inner = {"type": "object", "properties": {"a": parameters}}
    schemas = [inner, parameters] if isinstance(parameters, dict) else [inner]
    tools = [tool(f"t{index}", schema) for index, schema in enumerate(schemas)]
    tag = tag_of(model, *tools, tool("now"), level=ToolStrictLevel.PARAMETER)
    assert answers(tag)(call("now"))


FRAGMENTS: list[dict[str, Any]] = [
    {"type": ["string", "null"], "pattern": r"a|\bb", "minLength": 2},
    {"type": "string", "pattern": r"^[\w-.]+\s?$", "maxLength": 9, "format": "date"},
    {"type": "integer", "minimum": 0.5, "exclusiveMaximum": 9, "multipleOf": 3},
    {"type": ["integer", "number"], "minimum": 10**30, "maximum": "x"},
    {"type": "array", "items": [{}, False], "additionalItems": False, "minItems": 3},
    {"type": "array", "prefixItems": [True], "items": False, "uniqueItems": True, "maxItems": -1},
    {"type": "object", "properties": {"a": {"$ref": "#"}, "b": False}, "required": ["b", "z"]},
    {"propertyNames": {"type": ["object", "string"], "enum": [1]}, "additionalProperties": {}},
    {"patternProperties": {"^a": {"const": 1}, "(?!x)": True}, "maxProperties": 0},
    {"enum": [1, None, 'a"<b'], "nullable": True},
    {"anyOf": [{"$ref": "#/properties/a"}, False, {"required": True}], "oneOf": []},
    {"allOf": [{"type": "object", "properties": {"q": {"maxLength": 2}}}], "type": "object"},
    {"$ref": "#/$defs/x", "minimum": True},
    {"unevaluatedProperties": False, "properties": {"p": None}, "dependencies": 5},
    {"type": []},
    {"contains": {}, "minContains": 2, "maxLength": 2.5},
]


def odd_schema(chance: random.Random, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for fragment in chance.sample(FRAGMENTS, chance.randint(1, 3)):
        found |= fragment
    if depth and chance.random() < 0.7:
        inner = odd_schema(chance, depth - 1)
        key = chance.choice(["items", "additionalProperties", "propertyNames", "not", "properties"])
        found[key] = {"p": inner} if key == "properties" else inner
    if chance.random() < 0.3:
        found.pop("type", None)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_an_odd_schema_compiles_for_both_models(seed: int) -> None:
    chance = random.Random(seed)
    schema = odd_schema(chance, 3) | {"$defs": {"x": odd_schema(chance, 1)}}
    for model in (XML, HERMES):
        tag = tag_of(model, tool("odd", schema, True), tool("now"))
        assert answers(tag)(xml("now") if model == XML else hermes("now")), schema


def refusal(tools: list[dict[str, Any]], choice: Any = "required") -> str:
    with pytest.raises(VLLMValidationError) as caught:
        tool_tags.refuse_unheld(request_of(tools, choice))
    answer = refusal_of(caught.value)
    assert answer is not None
    assert (answer.status, answer.param) == (400, "tools")
    return answer.message


def test_a_strict_tool_with_what_cannot_be_held_is_refused_by_name() -> None:
    message = refusal([tool("edit", EDIT, True), tool("odd", ODD, True)])
    assert message.startswith(
        "the tool 'odd' is strict, and its schema has what a strict call cannot be held to: "
        "properties.title.pattern '(?=x)y', properties.items.minContains '2'. "
        "Take them out, or send the tool without 'strict'."
    )


def test_a_tool_is_not_refused_if_it_is_not_strict_or_cannot_be_called() -> None:
    tools = [tool("edit", EDIT, True), tool("odd", ODD)]
    tool_tags.refuse_unheld(request_of(tools))
    named = {"type": "function", "function": {"name": "edit"}}
    tools = [tool("edit", EDIT, True), tool("odd", ODD, True)]
    tool_tags.refuse_unheld(request_of(tools, named))
    refusal(tools, "auto")


@CALLS
async def test_the_gate_takes_the_tags_of_many_tools(model: str, call: Any) -> None:
    """With as many tokens as real models have: each state of a grammar has a mask of them."""
    texts = [
        *({"type": "string", "minLength": 1}, {"type": "string", "pattern": "^https?://.+$"}),
        *({"type": "string", "pattern": "x"}, {"type": "string", "format": "date-time"}),
        {"type": "array", "items": {"type": "object", "properties": {"a": {"pattern": "^a+"}}}},
        *({"type": ["string", "null"]}, {"enum": ["a", 1]}, {}, {"type": "object"}),
        {"type": "string", "maxLength": 5000},
    ]
    wide = {"type": "object", "properties": {f"p{i}": text for i, text in enumerate(texts)}}
    tools = [
        tool(f"tool_{index}", schema, index % 2 == 0)
        for index, schema in enumerate([EDIT, ODD, wide, None, wide, {"type": "object"}] * 5)
    ]
    info = xgrammar.TokenizerInfo(VOCABULARY, stop_token_ids=[0])
    process = GrammarProcess(Settings(info.serialize_json()))
    try:
        for choice in ("required", "auto"):
            text = json.dumps(tag_of(model, *tools, choice=choice).model_dump())
            found = await process.run("structural_tag", text, COMPILE_S, 64 * 2**20)
            assert (found.end, found.detail) == ("ok", "")
    finally:
        process.close()


def test_a_schema_whose_definitions_are_used_everywhere_costs_little() -> None:
    choices = {"enum": [f"choice {index}" for index in range(4000)]}
    trees = {"type": "object", "properties": {str(i): {"$ref": "#/$defs/a"} for i in range(1000)}}
    names = {f"p{i}": {"$ref": f"#/$defs/{'ab'[i % 2]}"} for i in range(2000)}
    schema = {"type": "object", "properties": names, "$defs": {"a": choices, "b": trees}}
    began_at = time.thread_time()
    found = arguments_of(what_holds(schema, Within.PARAMETERS)).model_dump_json()
    assert time.thread_time() - began_at < MOST_S
    assert len(found) < 8 * 2**20
