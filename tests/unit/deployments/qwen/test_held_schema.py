"""What of a JSON schema a grammar can hold, and what is reported of the rest."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from qwenfleet.deployments.qwen.held_pattern import held_pattern, text_parts
from qwenfleet.deployments.qwen.held_schema import (
    MOST_PATTERN_CHARS,
    MOST_REPORTED,
    MOST_VALUES,
    Within,
    unknown_in,
    what_holds,
)
from qwenfleet.deployments.qwen.pattern_reader import Unheld

MOST_S = 5.0
"""CPU time of one hostile schema on a busy machine; each takes less than 1 s."""
TEXTS = [
    *(
        "",
        "a",
        "b",
        "ab",
        "ba",
        "aab",
        "abc",
        "a b",
        "a1",
        "1",
        "a.b",
        "a-b",
        "A",
        "/",
        "/usr",
        "x/",
    ),
    *("a<b", "é", "😀", "a_b", "]", "[", "^", "-", "\\", '"', "a\nb", "\n", "\t", "{", "}", "a{1}"),
    *("2026-01-31", "a@b.de", "https://x.y/z", "ok", "not ok", "aaaa", "+1", "$"),
]
PATTERNS = [
    *("a", "^a", "a$", "^a$", "^a|b$", "^(a|b)$", "(^a$)|(^b$)", "^(?:ab)+$", "^$", "", "^a?b*$"),
    *(
        "^/",
        "^.*$",
        "^.+$",
        "^[^x]*$",
        "^[a-z]+$",
        r"^\d{4}-\d{2}-\d{2}$",
        r"^\w+$",
        r"^\W$",
        r"^\S+$",
    ),
    *(r"\s", r"^[\w.-]+@[\w-]+\.\w{2,}$", "^https?://", r"^[\w-.]+$", r"^[a\]\[^\\-]$", r"^\$$"),
    *(r"^a{2,3}$", "^a{2,}$", "^a{0}b$", r"^a\{1\}$", "^a{1}$", "^[-a]$", "^[a-]$", r"^[\s\S]*$"),
    *(r"^\x61$", r"^\u0061$", r"^[\x61-\x62]+$", "^(?P<x>a)b$", "^a+?b$", "^(|a)$", r'^["\\]$'),
    *(r"^\n$", "^[\n\t]$", "^\U0001f600$", "^[^\\W\\d]+$", "^[{}]$", "^((a)|(b))$"),
]
UNHELD = [
    *("(?=x)y", "^(?!x)y", "(?<=x)y", "(?<!x)y", r"(a)\1", r"(?<n>a)\k<n>", r"\bab\b", r"\Bab"),
    *(r"\p{L}+", r"\P{L}", r"[\p{L}a]", "(?i)ab", "(?i:ab)", "(?>a)b", "a++", "a**", "a^b", "a$b"),
    *(r"\Aab\Z", r"\z", r"\h", r"\R", r"\cA", r"[\b]", "[[:alpha:]]", "(?#x)a", "(a)?(?(1)b|c)"),
    *("(a", "a)", "[a", "[]", "a{3,1}", "a{,3}", "*", "a\\", "[z-a]", r"\ud83d\ude00", "(^|a)b"),
    *("a{99999999999}", "((a{99}){99}){99}", "(" * 99 + "a" + ")" * 99, "a" * 5000, "^*a"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_the_same_strings_when_it_must_match_all_of_them(pattern: str) -> None:
    """In text and in JSON. A wildcard of a text is never `<`."""
    ended = re.sub(r"(?<!\\)\$", r"\\Z", pattern)  # Python's own also stands before a newline
    meant = re.compile(ended.replace(r"[\w-.]", r"[\w.-]"), re.ASCII)
    in_json, in_text = _python(held_pattern(pattern)), _python(_whole_text(pattern))
    for text in TEXTS:
        found = meant.search(text) is not None
        written = json.dumps(text, ensure_ascii=False)[1:-1]
        assert bool(in_json.fullmatch(written)) == found, (pattern, text)
        if "<" not in text:
            assert bool(in_text.fullmatch(text)) == found, (pattern, text)


def _whole_text(pattern: str) -> str:
    any_text = r"[\s\S]*"
    return "|".join(
        f"{any_text if part.is_open_before else ''}(?:{part.expression})"
        f"{any_text if part.is_open_after else ''}"
        for part in text_parts(pattern)
    )


def _python(expression: str) -> re.Pattern[str]:
    return re.compile(
        re.sub(r"\\u\{([0-9a-f]+)\}", lambda code: f"\\U{int(code[1], 16):08x}", expression)
    )


@pytest.mark.parametrize("pattern", UNHELD, ids=lambda pattern: pattern[:20])
def test_a_pattern_that_cannot_be_held_is_reported_and_left_out(pattern: str) -> None:
    with pytest.raises(Unheld):
        held_pattern(pattern)
    schema = {"type": "object", "properties": {"k": {"type": "string", "pattern": pattern}}}
    shown = pattern if len(pattern) <= 64 else f"{pattern[:63]}…"
    assert unknown_in(schema) == [f"properties.k.pattern '{shown}'"]
    assert what_holds(schema)["properties"] == {"k": {"type": "string"}}


def test_a_pattern_and_bounds_of_the_length_are_held_together_where_they_can_be() -> None:
    for pattern, least, most, good, bad in [
        ("^[a-z]+$", 0, 3, "abc", "abcd"),
        ("^[a-z]*$", 2, None, "ab", "a"),
        ("^[a-z]{1,9}$", 2, 3, "ab", "abcd"),
        (r"^\d{4}-\d{2}$", 1, 64, "2026-01", "2026"),
    ]:
        expression = _python(held_pattern(pattern, least, most))
        assert expression.fullmatch(good)
        assert not expression.fullmatch(bad)
    schema = {"type": "string", "pattern": "^a+b*$", "maxLength": 3}
    assert unknown_in(schema) == ["maxLength '3'"]
    assert re.fullmatch(_python(what_holds(schema)["pattern"]), "aaaab")


REPORTED: list[tuple[Any, list[str]]] = [
    ({"type": "array", "minContains": 2}, ["minContains '2'"]),
    (
        {"type": "array", "contains": {"const": 1}, "maxContains": 1},
        ["contains", "maxContains '1'"],
    ),
    ({"type": "array", "uniqueItems": True}, ["uniqueItems"]),
    ({"type": "array", "uniqueItems": False}, []),
    ({"type": "array", "minItems": 3, "maxItems": 2}, ["minItems '3'"]),
    ({"type": "array", "items": "x"}, ["items"]),
    ({"type": "array", "prefixItems": {}}, ["prefixItems"]),
    ({"type": "number", "multipleOf": 0.5}, ["multipleOf '0.5'"]),
    ({"type": "integer", "multipleOf": 5}, []),
    ({"type": "integer", "multipleOf": 5, "minimum": 0}, ["multipleOf '5'"]),
    ({"type": "integer", "minimum": 9, "maximum": 7}, ["minimum '9'", "maximum '7'"]),
    ({"type": "integer", "minimum": 10**30}, [f"minimum '{10**30}'"]),
    ({"type": "integer", "minimum": "5"}, ["minimum '5'"]),
    ({"type": "string", "minLength": 4, "maxLength": 3}, ["minLength '4'"]),
    ({"type": "string", "maxLength": 16, "minLength": 4}, []),
    ({"type": "string", "maxLength": 17}, []),
    ({"type": "string", "minLength": 5}, []),
    ({"type": "string", "pattern": "^[a-z]{1,64}$"}, []),
    ({"type": "string", "pattern": "^.{1,64}$"}, ["pattern '^.{1,64}$'"]),
    ({"type": "string", "format": "unheard-of"}, []),
    ({"type": "string", "format": "date", "minLength": 1}, ["minLength '1'"]),
    ({"type": "text"}, ["type 'text'"]),
    ({"enum": []}, ["enum"]),
    ({"type": "string", "not": {"const": "a"}}, ["not"]),
    ({"type": "object", "if": {}, "then": {}}, ["if"]),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, ["dependentRequired"]),
    ({"$ref": "#/$defs/none"}, ["$ref '#/$defs/none'"]),
    ({"$ref": "https://x.y/z"}, ["$ref 'https://x.y/z'"]),
    ({"$ref": "#/$defs/a", "maxLength": 2, "$defs": {"a": {}}}, ["maxLength '2'"]),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, ["$ref '#/$defs/a'"]),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"pattern": r"\b"}}}, [r"$defs.a.pattern '\b'"]),
    ({"anyOf": []}, ["anyOf"]),
    ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, ["anyOf"]),
    ({"allOf": [{"type": "string"}, {"maxLength": 2}]}, ["allOf"]),
    ({"allOf": [{"type": "string"}]}, []),
    ({"type": "object", "required": "a"}, ["required"]),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, ["required 'a'"]),
    ({"type": "object", "properties": {"a": 5}}, ["properties.a"]),
    ({"type": "object", "patternProperties": {r"\b": {}}}, [r"patternProperties '\b'"]),
    ({"type": "object", "propertyNames": {"not": {}}}, ["propertyNames.not"]),
    ({"type": "object", "propertyNames": {"enum": "a"}}, ["propertyNames.enum"]),
    ({"type": "object", "properties": {}, "minProperties": 2}, ["minProperties '2'"]),
    (5, ["the schema"]),
    ({"title": 5, "description": [], "examples": {}, "default": None, "$comment": 1}, []),
]


@pytest.mark.parametrize(("schema", "found"), REPORTED, ids=lambda each: json.dumps(each)[:50])
def test_what_cannot_be_held_is_reported_with_its_place(schema: Any, found: list[str]) -> None:
    assert unknown_in(schema) == found


WRITTEN: list[tuple[Any, Any]] = [
    ({"type": "array"}, {"type": "array", "items": True}),
    ({"type": "object"}, {"type": "object", "properties": {}, "additionalProperties": True}),
    ({"type": "object", "properties": {}}, {"type": "object", "properties": {}}),
    ({"maxLength": 3}, {"type": "string", "maxLength": 3}),
    ({"type": "string", "nullable": True}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
    ({"minimum": 5, "exclusiveMinimum": True}, {"type": "number", "exclusiveMinimum": 5}),
    ({"type": "integer", "minimum": 0.5, "exclusiveMaximum": 3}, {"minimum": 1, "maximum": 2}),
    ({"type": "array", "items": [{}, {"type": "null"}]}, {"prefixItems": [{}, {"type": "null"}]}),
    ({"type": "string", "anyOf": [{"maxLength": 2}, {"const": "x"}]}, {"anyOf": [
        {"type": "string", "maxLength": 2}, {"const": "x"}]}),
    ({"oneOf": [False, {"type": "null"}]}, {"type": "null"}),
    ({"type": "object", "required": ["a"]}, {"properties": {"a": True}, "required": ["a"]}),
    ({"$ref": "#/x/~1y/0", "x": {"/y": [{"type": "null"}]}}, {"$defs": {"r0": {"type": "null"}}}),
    ({"title": "x", "description": "y"}, True),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "written"), WRITTEN, ids=lambda each: json.dumps(each)[:50])
def test_what_means_the_same_is_written_as_it_is_held(schema: Any, written: Any) -> None:
    found = what_holds(schema)
    assert found == written or written.items() <= found.items()
    assert unknown_in(schema) == []


def test_the_schema_of_the_request_stays_as_it_was() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["b"]}
    before = json.dumps(schema)
    what_holds(schema, Within.PARAMETERS)
    assert json.dumps(schema) == before


def test_parameters_in_xml_are_always_an_object() -> None:
    for schema in ({"type": "string"}, {"enum": [1]}, {"type": "object"}, {"$ref": "#/none"}):
        found = what_holds(schema, Within.PARAMETERS)
        assert (found["type"], found["additionalProperties"]) == ("object", True)


def test_parameters_in_xml_have_texts_of_any_length_and_nothing_about_their_number() -> None:
    text = {"type": "string", "maxLength": 5000, "minLength": 1}
    schema: Any = {"type": "object", "properties": {"a": text, "b": {"items": text}}}
    assert unknown_in(schema, Within.PARAMETERS) == [], "a length refuses no strict tool"
    held = what_holds(schema, Within.PARAMETERS)["properties"]
    assert (held["a"], held["b"]["items"]) == (text, {"type": "string", "minLength": 1})
    schema = {"type": "object", "patternProperties": {"^x": {}}, "minProperties": 1}
    found = ["patternProperties", "minProperties"]
    assert unknown_in(schema, Within.PARAMETERS) == found
    assert unknown_in(schema) == []


def _deep() -> Any:
    found: Any = {"type": "string"}
    for _ in range(3000):
        found = {"type": "object", "properties": {"a": found}}
    return found


def _references() -> Any:
    found: Any = {}
    inner = found
    for _ in range(60):
        inner |= {"type": "object", "properties": {"a": {}}}
        inner = inner["properties"]["a"]
    names = {f"x{index}": {"$ref": "#" + "/properties/a" * (index % 60)} for index in range(3000)}
    found["properties"]["refs"] = {"type": "object", "properties": names}
    return found


def _patterns(pattern: str, number: int) -> Any:
    names = {str(index): {"pattern": f"{pattern}{index}"} for index in range(number)}
    return {"type": "object", "properties": names}


HOSTILE = {
    "deep": _deep(),
    "references": _references(),
    "wide": {"anyOf": [{"type": "object", "required": [str(index)]} for index in range(10_000)]},
    "loops": {"anyOf": [{"$ref": f"#/anyOf/{(index + 1) % 3000}"} for index in range(3000)]},
    "patterns": _patterns(r"\W\S\D" * 600, 100),
    "classes": _patterns(f"[^{''.join(map(chr, range(0x4E00, 0x5E00, 2)))}]", 60),
    "groups": _patterns("(" * 31 + "a|b" * 900 + ")" * 31, 60),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_costs_little(name: str) -> None:
    began_at = time.thread_time()
    found = what_holds(HOSTILE[name], Within.PARAMETERS)
    reported = unknown_in(HOSTILE[name])
    assert time.thread_time() - began_at < MOST_S
    assert len(reported) <= MOST_REPORTED
    assert all(len(each) < 300 for each in reported)
    assert len(json.dumps(found)) < 100 * max(MOST_PATTERN_CHARS, MOST_VALUES)
