"""Typed: values of every JSON type and schema, as a model writes them and as they should arrive."""

from __future__ import annotations

from typing import Any, Final

from tests.tool_calls.case import STRING, Case, call, case, xml

Row = tuple[str, Any]
"""What the model wrote, and the value."""

INTEGER: Final = {"type": "integer"}
NULL: Final = {"type": "null"}
HUGE: Final = "123456789012345678901234567890"
POINT: Final = {
    "type": "object",
    "properties": {"x": INTEGER, "label": STRING, "next": {"$ref": "#/$defs/point"}},
}
DEFINITIONS: Final = {
    "count": INTEGER,
    "point": POINT,
    "maybe": {"anyOf": [{"$ref": "#/$defs/count"}, NULL]},
    "alias": {"$ref": "#/$defs/count"},
    "a/b~c": {"type": "boolean"},
    "tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
    "loop": {"$ref": "#/$defs/loop"},
    "choice": {"anyOf": [{"$ref": "#/$defs/choice"}, INTEGER]},
}


def typed(kind: str, schema: Any, *rows: Row) -> tuple[Case, ...]:
    """A case for each row: a call of `f` with one parameter of this schema."""
    tools = {"f": {"type": "object", "properties": {"v": schema}, "$defs": DEFINITIONS}}
    return tuple(
        case(f"{kind}: {text!r}", xml("f", v=text), call("f", v=value), tools=tools)
        for text, value in rows
    )


def as_text(*texts: str) -> tuple[Row, ...]:
    """Rows whose text does not fit, or is a string, and stays as it is."""
    return tuple((text, text) for text in texts)


SCALARS: Final = (
    *typed("string", STRING, *as_text("42", "true", "null", "None", "[1, 2]", '{"a": 1}', " x ")),
    *typed(
        "integer",
        INTEGER,
        ("42", 42),
        ("-7", -7),
        ("+7", 7),
        ("007", 7),
        ("0", 0),
        ("000", 0),
        (" 12\t", 12),
        ("5.0", 5),
        ("5.", 5),
        (HUGE, int(HUGE)),
        *as_text("5.5", "1_000", "0x10", "1e3", "1,000", "five", "NaN", "True", "null", "", "- 1"),
    ),
    *typed(
        "number",
        {"type": "number"},
        ("1.5", 1.5),
        ("5", 5),
        ("5.0", 5.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1.5", 1.5),
        ("007", 7.0),
        ("1e3", 1e3),
        ("-2.5E-3", -2.5e-3),
        (HUGE, int(HUGE)),
        *as_text("NaN", "Infinity", "-inf", "1e400", "1,5", "1_0.0", "0x1p3", "", "1.2.3"),
    ),
    *typed(
        "boolean",
        {"type": "boolean"},
        ("true", True),
        ("false", False),
        ("True", True),
        ("False", False),
        (" true ", True),
        ("TRUE", True),
        *as_text("yes", "1", "on", ""),
    ),
    *typed("null", NULL, ("null", None), ("None", None), *as_text("nil", "", "0")),
)

CONTAINERS: Final = (
    *typed(
        "array",
        {"type": "array"},
        ('["a", "b"]', ["a", "b"]),
        ("[]", []),
        ("['a', \"b\"]", ["a", "b"]),
        ("[True, False, None]", [True, False, None]),
        ("[1, 2.5, -3]", [1, 2.5, -3]),
        ("(1, 2)", [1, 2]),
        ("[1, 2,]", [1, 2]),
        ('[\n  "a",\n  ["b"]\n]', ["a", ["b"]]),
        ('["\\ud83c\\udf89", "é"]', ["🎉", "é"]),
        ('["</parameter> <x"]', ["</parameter> <x"]),
        *as_text("[1, 2", "a, b", '{"a": 1}', "[a]", "[NaN]", "[1] [2]", "[f()]", "{1, 2}", ""),
    ),
    *typed("array of integers", {"type": "array", "items": INTEGER}, ('["1", 2]', [1, 2])),
    *typed("array of integers", {"type": "array", "items": INTEGER}, ('["1", "x"]', [1, "x"])),
    *typed("array of strings", {"type": "array", "items": STRING}, ('["1", 2]', ["1", 2])),
    *typed(
        "array of booleans",
        {"type": "array", "items": {"type": "boolean"}},
        ("['true', 'False', True]", [True, False, True]),
    ),
    *typed(
        "array of arrays",
        {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        ('[["1.5", "2"], "[3]"]', [[1.5, 2], [3]]),
    ),
    *typed(
        "object",
        {"type": "object"},
        ('{"a": 1, "b": {"c": [null]}}', {"a": 1, "b": {"c": [None]}}),
        ("{}", {}),
        ("{'a': True, 'b': None}", {"a": True, "b": None}),
        ("{'a': {'b': [1, 'x']}}", {"a": {"b": [1, "x"]}}),
        ("{1: 2}", {"1": 2}),
        ('{\n  "a": "b\\nc"\n}', {"a": "b\nc"}),
        *as_text('{"a": NaN}', "{a: 1}", '{"a": 1} and more', "[1]", '{"a": 1e999}', "{[]: 1}"),
    ),
    *typed(
        "object with members",
        POINT,
        ('{"x": "5", "label": "5"}', {"x": 5, "label": "5"}),
        ("{'x': '-1', 'other': '2'}", {"x": -1, "other": "2"}),
        ('{"next": {"next": {"x": "3"}}}', {"next": {"next": {"x": 3}}}),
        ('{"next": "{\\"x\\": \\"4\\"}"}', {"next": {"x": 4}}),
    ),
)


def any_of(*kinds: str) -> dict[str, Any]:
    return {"anyOf": [{"type": kind} for kind in kinds]}


UNIONS: Final = (
    *typed(
        "string or integer",
        {"type": ["string", "integer"]},
        ("42", 42),
        ("-1", -1),
        *as_text("007", "+4", "4.0", " 4", "x", "", "true", "- 1"),
    ),
    *typed("integer or string", {"type": ["integer", "string"]}, ("42", 42), ("007", "007")),
    *typed("long digits or string", {"type": ["integer", "string"]}, *as_text("9" * 100)),
    *typed(
        "string or number",
        {"type": ["string", "number"]},
        ("1.5", 1.5),
        ("3", 3),
        *as_text("1.10", "1e5", ".5", "1.2.3", "nan"),
    ),
    *typed("string or null", any_of("string", "null"), ("null", None), ("None", None)),
    *typed("string or null", any_of("string", "null"), *as_text("nothing", "", "Null", "x " * 40)),
    *typed("string or boolean", any_of("string", "boolean"), ("True", True), ("yes", "yes")),
    *typed(
        "string or array",
        any_of("string", "array"),
        ('["a"]', ["a"]),
        ('\n[1, "</parameter> <"]', [1, "</parameter> <"]),
        *as_text("[draft", "a", "[x] done", "(not a list)"),
    ),
    *typed(
        "string or object",
        {"oneOf": [STRING, {"type": "object", "properties": {"n": INTEGER}}]},
        ('{"n": "1"}', {"n": 1}),
        *as_text("{n}", "{{ n }}", "x = {}", "[1]"),
    ),
    *typed("integer or null", any_of("integer", "null"), ("null", None), ("3", 3), ("x", "x")),
    *typed("integer or number", {"type": ["number", "integer"]}, ("5", 5), ("5.5", 5.5)),
    *typed(
        "all types",
        {"type": ["string", "number", "integer", "boolean", "array", "object", "null"]},
        ("x", "x"),
        ("1", 1),
        ("true", True),
        ("null", None),
        ("[1]", [1]),
        ('{"a": 1}', {"a": 1}),
    ),
    *typed("one of", {"oneOf": [INTEGER, {"type": "array", "items": INTEGER}]}, ("['1']", [1])),
    *typed("all of", {"allOf": [{"description": "how many"}, INTEGER]}, ("5", 5)),
    *typed("any of branches in branches", {"anyOf": [any_of("integer"), NULL]}, ("5", 5)),
    *typed("any of, with one that says nothing", {"anyOf": [{}, INTEGER]}, ("5", 5), ("05", "05")),
    *typed("nullable", INTEGER | {"nullable": True}, ("null", None), ("5", 5)),
    *typed("nullable string", STRING | {"nullable": True}, ("null", None), ("x", "x")),
    *typed("nullable any of", any_of("integer") | {"nullable": True}, ("None", None)),
)

REFERENCES: Final = (
    *typed("reference", {"$ref": "#/$defs/count"}, ("5", 5)),
    *typed("reference to a reference", {"$ref": "#/$defs/alias"}, ("5", 5)),
    *typed("reference to any of", {"$ref": "#/$defs/maybe"}, ("null", None), ("5", 5)),
    *typed("reference with escapes", {"$ref": "#/$defs/a~1b~0c"}, ("true", True)),
    *typed("reference to an object", {"$ref": "#/$defs/point"}, ('{"x": "5"}', {"x": 5})),
    *typed("reference in all of", {"allOf": [{"$ref": "#/$defs/count"}]}, ("5", 5)),
    *typed(
        "references in any of",
        {"anyOf": [{"$ref": "#/$defs/point"}, {"$ref": "#/$defs/count"}, NULL]},
        ('{"x": "1"}', {"x": 1}),
        ("5", 5),
        ("null", None),
        ("007", 7),
    ),
    *typed(
        "the same reference twice",
        {"anyOf": [{"$ref": "#/$defs/count"}, {"$ref": "#/$defs/count"}]},
        ("007", 7),
    ),
    *typed("reference into itself", {"$ref": "#/$defs/tree"}, ("[[], [[]]]", [[], [[]]])),
    *typed("reference to itself", {"$ref": "#/$defs/loop"}, ("5", "5")),
    *typed("a branch that is its own", {"$ref": "#/$defs/choice"}, ("05", 5)),
    *typed("reference to the root", {"$ref": "#"}, ('{"v": {}}', {"v": {}})),
    *typed("reference to nothing", {"$ref": "#/$defs/none"}, ("5", "5")),
    *typed("reference to an anchor", {"$ref": "#count"}, ("{}", "{}")),
    *typed("reference to elsewhere", {"$ref": "https://example.org/a.json"}, ("5", "5")),
)

CHOICES: Final = (
    *typed("enum", {"enum": ["a", "b"]}, ("a", "a"), ("c", "c")),
    *typed("enum of strings", STRING | {"enum": ["1", "true"]}, ("1", "1"), ("true", "true")),
    *typed("enum of integers", {"enum": [1, 2]}, ("1", 1), ("3", 3), ("x", "x")),
    *typed("enum of integers with type", INTEGER | {"enum": [1, 2]}, (" 2 ", 2)),
    *typed("enum of kinds", {"enum": ["1", 2, None, True]}, ("1", "1"), ("2", 2), ("None", None)),
    *typed("enum of booleans", {"enum": [True, False]}, ("true", True), ("False", False)),
    *typed("enum of containers", {"enum": [[1], {"a": None}]}, ("[1]", [1])),
    *typed("enum of containers", {"enum": [[1], {"a": None}]}, ("{'a': None}", {"a": None})),
    *typed(
        "enum in any of",
        {"anyOf": [{"enum": ["low", "high"]}, INTEGER, NULL]},
        ("low", "low"),
        ("5", 5),
        ("null", None),
    ),
    *typed("const", {"const": 5}, ("5", 5), ("x", "x")),
    *typed("const string", {"const": "5"}, ("5", "5")),
    *typed("const null", {"const": None}, ("null", None)),
    *typed("const with type", {"type": "number", "const": 1.5}, ("1.5", 1.5)),
)

UNTYPED: Final = (
    *typed("no type", {}, *as_text("42", "true", "null", '{"a": 1}', "[1]")),
    *typed("description only", {"description": "any"}, *as_text("42")),
    *typed("unknown type", {"type": "any"}, *as_text("42")),
    *typed("true as a schema", True, *as_text("42")),
    *typed("text as a schema", "integer", *as_text("42")),
    *typed("types that are none", {"type": [None, 5, {}]}, *as_text("42")),
    *typed("members without type", {"properties": {"n": INTEGER}}, ('{"n": "1"}', {"n": 1})),
    *typed("more members without type", {"additionalProperties": True}, ('{"n": 1}', {"n": 1})),
    *typed("items without type", {"items": INTEGER}, ('["1"]', [1])),
)

TYPED: Final = SCALARS + CONTAINERS + UNIONS + REFERENCES + CHOICES + UNTYPED
