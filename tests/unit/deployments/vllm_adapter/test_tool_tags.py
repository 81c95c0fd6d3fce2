"""Which answers the tags of tools allow: compiled by xgrammar, and matched byte by byte."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm.tool_parsers.structural_tag_registry import limit_to_single_tool_call


from qwenfleet.deployments.qwen.events import Arguments
from qwenfleet.deployments.qwen.tool_dialect import ToolDialect
from tests.unit.deployments.vllm_adapter.tool_grammars import (
    CALLS,
    EDIT,
    HERMES,
    ODD,
    XML,
    answers,
    tag_of,
    tool,
    xml,
)


@CALLS
@pytest.mark.parametrize("strict", [True, None])
@pytest.mark.parametrize(
    "parameters",
    [None, {}, {"type": "object"}, {"type": "object", "properties": {}}],
    ids=json.dumps,
)
def test_a_tool_without_parameters_is_called_as_the_template_writes_it(
    model: str, call: Any, strict: bool | None, parameters: Any
) -> None:
    allows = answers(tag_of(model, tool("now", parameters, strict)))
    assert allows(call("now"))


@CALLS
@pytest.mark.parametrize("strict", [True, None])
def test_a_call_with_arguments_is_allowed_and_optional_ones_may_be_left_out(
    model: str, call: Any, strict: bool | None
) -> None:
    allows = answers(tag_of(model, tool("edit", EDIT, strict), tool("now")))
    assert allows(call("edit", path="a.py", line=3, mode="insert", tags=["x", "y"]))
    assert allows(call("edit", path="a.py"))
    assert allows(call("edit", path="a.py", tags=[]))


@CALLS
def test_the_arguments_of_a_strict_tool_follow_its_schema(model: str, call: Any) -> None:
    allows = answers(tag_of(model, tool("edit", EDIT, True)))
    assert not allows(call("edit"))
    assert not allows(call("edit", path="a.py", line="three"))
    assert not allows(call("edit", path="a.py", mode="delete"))
    assert not allows(call("edit", path="a.py", tags=[1]))
    assert not allows(call("edit", path="a.py", other="b"))


@CALLS
def test_the_arguments_of_another_tool_are_any(model: str, call: Any) -> None:
    allows = answers(tag_of(model, tool("edit", EDIT)))
    assert allows(call("edit"))
    assert allows(call("edit", line="three", **{"no-name": [1], "ünder": {"a": None}}))


@CALLS
def test_a_call_that_must_come_comes_first_and_is_one_of_the_tools(model: str, call: Any) -> None:
    allows = answers(tag_of(model, tool("edit", EDIT), tool("now")))
    assert not allows("")
    assert not allows("Sure.\n" + call("now"))
    assert not allows(call("nowhere"))
    assert not allows(call("now") + "\nDone.")


@CALLS
def test_calls_follow_each_other_on_lines_of_their_own(model: str, call: Any) -> None:
    tag = tag_of(model, tool("edit", EDIT), tool("now"))
    both = call("edit", path="a") + "\n" + call("now")
    assert answers(tag)(both)
    assert not answers(tag)(call("now") + "\n\n" + call("now"))
    limit_to_single_tool_call(tag)
    assert answers(tag)(call("now"))
    assert not answers(tag)(both)


@CALLS
def test_a_tool_that_is_named_is_called_once(model: str, call: Any) -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    allows = answers(tag_of(model, tool("edit", EDIT), tool("now"), choice=choice))
    assert allows(call("now"))
    assert not allows(call("edit", path="a"))
    assert not allows(call("now") + "\n" + call("now"))


@CALLS
def test_an_answer_that_may_call_a_strict_tool_has_text_where_it_likes(
    model: str, call: Any
) -> None:
    tag = tag_of(model, tool("edit", EDIT, True), tool("now"), choice="auto")
    allows = answers(tag)
    one, two = call("edit", path="a"), call("now")
    for text in ("", "No.", one, f"I look.\n\n{one}", f"{one}\n{two}", f"{one}\nand\n{two}\nDone."):
        assert allows(text), text
    assert not allows(call("edit", path="a", line="three"))
    limit_to_single_tool_call(tag)
    allows = answers(tag)
    assert allows("I look.\n" + one)
    assert not allows(f"{one}\n{two}")


@CALLS
def test_a_choice_without_strict_tools_leaves_the_answer_free(model: str, call: Any) -> None:
    assert tag_of(model, tool("odd", ODD), tool("now"), choice="auto") is None


def test_a_call_without_its_opening_tag_is_held_too() -> None:
    allows = answers(tag_of(XML, tool("edit", EDIT, True), choice="auto"))
    head, tail = "<function=edit>\n<parameter=path>\na\n</parameter>\n", "</function>"
    assert allows(head + tail)
    assert not allows(head + "<parameter=line>\nx\n</parameter>\n" + tail)


@pytest.mark.parametrize("parameters", [None, EDIT])
@pytest.mark.parametrize("strict", [True, None])
def test_blanks_cannot_be_repeated_outside_of_values(parameters: Any, strict: bool | None) -> None:
    allows = answers(tag_of(XML, tool("edit", parameters, strict)))
    path = "<parameter=path>\na\n</parameter>"
    head, tail = "<tool_call>\n<function=edit>\n", "</function>\n</tool_call>"
    for blanks in ("\n" * 4, " " * 4, "\n \n "):
        assert not allows(head + blanks + tail)
        assert not allows(head + path + blanks + tail)
        assert not allows(head + path + "\n" + tail + blanks)


def test_blanks_cannot_be_repeated_in_json() -> None:
    allows = answers(tag_of(HERMES, tool("edit", EDIT, True), tool("any", {})))
    begin = '<tool_call>\n{"name": "edit", "arguments": '
    assert allows(begin + '{ "path" : "a" }}\n</tool_call>')
    assert not allows(begin + '{   "path": "a"}}\n</tool_call>')
    assert not allows(begin + '{"path": "a",\n\n\n"line": 1}}\n</tool_call>')
    assert not allows(begin.replace("edit", "any") + "{\n\n\n}}\n</tool_call>")


TEXTS = [
    "if a < b and c </ d:\n\n    return '</p>'\n",
    "<div>\n  <param name='x'></param>\n</div>",
    "\n\n\n",
    "",
    "<tool_call>\n<function=edit>\n</function>\n</tool_call>",
    'a "quoted" \\n ü 😀',
]


@pytest.mark.parametrize("strict", [True, None])
@pytest.mark.parametrize("bounds", [{}, {"minLength": 1}, {"maxLength": 500}], ids=json.dumps)
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_may_have_what_looks_like_tags(
    text: str, bounds: dict[str, int], strict: bool | None
) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string", **bounds}}}
    allows = answers(tag_of(XML, tool("edit", schema, strict)))
    is_empty = "minLength" in bounds and strict and not text.strip("\n")
    assert allows(xml("edit", text=text)) != is_empty


@pytest.mark.parametrize("bounds", [{}, {"maxLength": 500}, {"pattern": "^[^x]*$"}], ids=json.dumps)
def test_no_text_has_the_tag_that_ends_it(bounds: dict[str, Any]) -> None:
    """The answer could not end where the model thinks that it did."""
    schema = {"type": "object", "properties": {"text": {"type": "string", **bounds}}}
    allows = answers(tag_of(XML, tool("edit", schema, True)))
    assert not allows(xml("edit", text="a</parameter>b"))
    assert not allows(xml("edit", text="a\n</parameter>\n<parameter=z>\nb"))


def test_a_parameter_may_have_any_name_that_can_be_written() -> None:
    names = {name: {"type": "integer"} for name in ("a-b", "a.b", "$x", "über", "a b")}
    allows = answers(tag_of(XML, tool("t", {"type": "object", "properties": names}, True)))
    assert allows(xml("t", **dict.fromkeys(names, 1)))
    open_schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    allows = answers(tag_of(XML, tool("t", open_schema, True)))
    assert allows(xml("t", **dict.fromkeys(names, 1)))
    assert not allows(xml("t", **{"a-b": "x"}))


VALUES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "integer", "minimum": 1, "maximum": 12}, [1, 12], [0, 13, "x", 1.5]),
    ({"type": "number"}, [1, -2.5], ["x"]),
    ({"type": "boolean"}, [True], ["True", 1]),
    ({"type": ["string", "null"]}, ["x", None], []),
    ({"type": "string", "enum": ["a<b", "c\nd"]}, ["a<b", "c\nd"], ["e"]),
    ({"type": "string", "format": "date"}, ["2026-01-31"], ["today"]),
    ({"type": "string", "pattern": "^/"}, ["/", "/usr/lib"], ["usr", ""]),
    ({"type": "string", "pattern": r"^[^\s]+@\w+\.\w{2,}$"}, ["a@b.de"], ["a@b", "a b@c.de"]),
    ({"type": "string", "pattern": "^a$|^b$"}, ["a", "b"], ["ab"]),
    ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}, ["abc"], ["abcd", ""]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["abcd"]),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, [[1, 2]], [[1, 2, 3], ["x"]]),
    ({"$ref": "#/$defs/tree"}, [{"of": [{"of": []}]}], [{"of": 1}, {}]),
    ({"$ref": "#/properties/~0odd~1"}, [7], ["x"]),
    ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {}}]}, [1, ["x"]], ["x", {}]),
    ({"allOf": [{"type": "integer"}], "description": "d"}, [1], ["x"]),
]
TREE = {
    "type": "object",
    "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
    "required": ["of"],
}


@CALLS
@pytest.mark.parametrize(("schema", "good", "bad"), VALUES, ids=lambda each: json.dumps(each)[:40])
def test_a_value_is_what_its_schema_says(
    model: str, call: Any, schema: Any, good: list[Any], bad: list[Any]
) -> None:
    properties = {"value": schema, "~odd/": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "$defs": {"tree": TREE}}
    allows = answers(tag_of(model, tool("t", parameters, True)))
    assert [value for value in good if not allows(call("t", value=value))] == []
    assert [value for value in bad if allows(call("t", value=value))] == []


def test_what_the_tag_allows_is_what_the_parser_reads() -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 500}}}
    allows = answers(tag_of(XML, tool("edit", schema, True)))
    for text in TEXTS:
        answer = xml("edit", text=text)
        assert allows(answer)
        dialect = ToolDialect({"edit": schema})
        events = dialect.feed(answer) + dialect.finish()
        read = "".join(event.json for event in events if isinstance(event, Arguments))
        assert json.loads(read) == {"text": text}
