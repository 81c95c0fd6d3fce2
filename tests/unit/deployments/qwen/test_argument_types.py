"""Tests the JSON of arguments with schemas and texts that mean harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.qwen.argument_types import Schema, dumps, to_json

TEXTS = ("5", "007", "null", "True", "[1]", '{"a": {"b": "1"}}', "x", "")


class Counted(dict[str, Any]):
    """A part of a schema that counts how often any of its kind is looked into."""

    looks = 0

    def get(self, key: str, default: Any = None, /) -> Any:
        Counted.looks += 1
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        Counted.looks += 1
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        Counted.looks += 1
        return super().__contains__(key)


def counted(node: Any) -> Any:
    if isinstance(node, dict) and not isinstance(node, Counted):
        return Counted({key: counted(value) for key, value in node.items()})
    return [counted(each) for each in node] if isinstance(node, list) else node


def nested(kind: str, depth: int) -> Any:
    node = Counted(type="integer")
    for _ in range(depth):
        node = Counted({kind: [node]})
    return node


LOOP = {"anyOf": [{"$ref": "#"}] * 300, "oneOf": [{"$ref": "#"}] * 300}
HOSTILE = {
    "a reference to itself": {"$ref": "#"},
    "references in a ring": {"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}},
    "a branch that is the schema": {"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]},
    "300 branches that are the schema": LOOP,
    "items that are the schema": {"type": "array", "items": {"$ref": "#"}},
    "members that are the schema": {"type": "object", "properties": {"a": {"$ref": "#"}}},
    "10,000 branches": {"anyOf": [{"type": "integer", "title": str(n)} for n in range(10_000)]},
    "10,000 branches of all": {"allOf": [{"title": str(n)} for n in range(10_000)]},
    "10,000 references": {"anyOf": [{"$ref": "#/anyOf"} for _ in range(10_000)]},
    "branches of nothing": {"anyOf": [{"anyOf": [0] * 300, "oneOf": [0] * 300}] * 300},
    "900 branches in branches": nested("anyOf", 900),
    "900 all in all": nested("allOf", 900),
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_schema_is_looked_at_a_bounded_number_of_times(schema: Any) -> None:
    root = counted(schema)
    Counted.looks = 0
    found = Schema(root, root)
    for text in TEXTS:
        json.loads(to_json(text, found))
    assert Counted.looks < 60_000


def test_a_member_of_many_branches_is_looked_up_a_bounded_number_of_times() -> None:
    branches = [{"properties": {f"p{n}": {"type": "integer"}}} for n in range(10_000)]
    schema = Schema(counted({"anyOf": branches}), None)
    Counted.looks = 0
    assert schema.declares("p0")
    assert not schema.declares("p9999")
    assert schema.member("p0").types == {"integer"}
    assert Counted.looks < 3_000


def test_choices_are_read_once_for_all_values() -> None:
    schema = Schema(counted({"enum": list(range(10_000))}), None)
    assert to_json("7", schema) == "7"
    Counted.looks = 0
    for text in TEXTS * 100:
        to_json(text, schema)
    assert Counted.looks == 0


SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from((None, True, 5, "integer", [], {}, {"$ref": "#"}, {"$ref": "#/anyOf/0"}))
    | st.sampled_from(
        ("integer", "string", "number", "array", "object", "null", "boolean", "any")
    ).map(lambda kind: {"type": kind}),
    lambda inner: (
        st.dictionaries(
            st.sampled_from(("type", "$ref", "const", "nullable", "items", "properties")), inner
        )
        | st.dictionaries(
            st.sampled_from(("anyOf", "oneOf", "allOf", "enum", "type")),
            st.lists(inner, max_size=3),
        )
        | st.dictionaries(st.just("properties"), st.dictionaries(st.sampled_from("ab"), inner))
    ),
    max_leaves=8,
)


@given(SCHEMAS, st.sampled_from(TEXTS) | st.text(max_size=9))
def test_any_schema_makes_json_of_any_text(schema: Any, text: str) -> None:
    found = to_json(text, Schema(schema, schema))
    found.encode()
    json.loads(found, parse_constant=lambda constant: pytest.fail(constant))


@given(st.text(max_size=20))
def test_a_string_is_what_was_written(text: str) -> None:
    assert json.loads(to_json(text, Schema({"type": "string"}, None))) == text


@given(st.text(alphabet='+-.0123456789eE_ xnull"[]{}', max_size=9))
def test_a_string_or_a_number_loses_nothing(text: str) -> None:
    found = json.loads(to_json(text, Schema({"type": ["string", "number", "integer"]}, None)))
    assert str(found) == text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (r'["\ud800"]', "array"),
        (r'{"\ud83c": "\udf89\ud83c"}', "object"),
        (r"['\ud800']", "array"),
    ],
)
def test_half_a_surrogate_pair_can_be_sent(text: str, kind: str) -> None:
    found = to_json(text, Schema({"type": kind}, None))
    assert "\\ud8" in found
    assert isinstance(json.loads(found.encode()), list | dict)


def test_half_a_surrogate_pair_in_a_schema_can_be_sent() -> None:
    assert to_json("5", Schema({"enum": [5, "\ud800"]}, None)) == "5"
    assert dumps("\ud800") == '"\\ud800"'
    assert dumps("é🎉") == '"é🎉"'


@pytest.mark.parametrize("choice", [float("nan"), float("inf"), [float("nan")]])
def test_a_choice_that_is_not_json_is_none(choice: Any) -> None:
    for text in ("nan", "NaN", "inf", "Infinity", "[nan]"):
        assert to_json(text, Schema({"enum": [choice]}, None)) == dumps(text)


@pytest.mark.parametrize("kind", ["integer", "number"])
@pytest.mark.parametrize("digit", ["0", "1", "1.", "1e"])
def test_a_text_that_is_nearly_a_number_is_read_once(kind: str, digit: str) -> None:
    """Read once for each digit, it would take minutes."""
    text = digit * 200_000 + "x"
    assert to_json(text, Schema({"type": kind}, None)) == dumps(text)


NEARLY = (
    *("[" * 100_000, '{"a":' * 100_000, "[" * 199, "(" * 199, "[" + "-" * 19_000 + "1]"),
    *("[" + "1+" * 9_000 + "1]", "[" + "not " * 4_000 + "1]", "[" + "9" * 5_000 + "]"),
    *("[0x" + "f" * 19_000 + "]", "['\\d', \x00]", "[1, ...]", "[1j]", "[b'a']", "{(1, 2): 3}"),
)


@pytest.mark.parametrize("text", NEARLY, ids=range(len(NEARLY)))
@pytest.mark.parametrize("kind", ["array", "object"])
def test_a_text_that_is_nearly_a_container_stays_text(text: str, kind: str) -> None:
    assert to_json(text, Schema({"type": kind}, None)) == dumps(text)


def test_a_long_python_list_stays_text() -> None:
    """Python's own parser is slow, and what models write in its way is short."""
    text = "['a', " + "1, " * 7_000 + "]"
    assert to_json(text, Schema({"type": "array"}, None)) == dumps(text)


def test_deep_members_are_read_by_their_schema_up_to_a_depth() -> None:
    tree = {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"$ref": "#"}]}}
    deep = "[" * 40 + '"1"' + "]" * 40
    assert json.loads(to_json("[" * 9 + '"1"' + "]" * 9, Schema(tree, tree))) == (
        json.loads("[" * 9 + "1" + "]" * 9)
    )
    assert json.loads(to_json(deep, Schema(tree, tree))) == json.loads(deep)
