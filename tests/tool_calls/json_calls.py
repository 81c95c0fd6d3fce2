"""JSON calls: Hermes' format, its other forms, and what models get wrong in it."""

from __future__ import annotations

from typing import Final

from tests.tool_calls.case import Case, call, case, cut, hermes, xml
from tests.tool_calls.prose import stays


def inside(name: str, text: str, **arguments: object) -> Case:
    """A call of `write` in this text between opener and closer."""
    return case(name, f"<tool_call>\n{text}\n</tool_call>", call("write", **arguments))


NOW: Final = hermes("now", "{}")

FORMS: Final[tuple[Case, ...]] = (
    case("json: usual", hermes("write", '{"path": "hi"}'), call("write", path="hi")),
    case("json: no arguments", NOW, call("now")),
    inside(
        "json: every kind of value",
        '{"name": "write", "arguments": {"a": "b", "n": -1.5e3, "t": true, "f": false,'
        ' "z": null, "l": [1, [2]], "o": {"p": {}}}}',
        a="b",
        n=-1500.0,
        t=True,
        f=False,
        z=None,
        l=[1, [2]],
        o={"p": {}},
    ),
    inside("json: no type is changed", '{"name": "write", "arguments": {"mode": "7"}}', mode="7"),
    inside(
        "json: no blanks", '{"name":"write","arguments":{"path":"hi","mode":7}}', path="hi", mode=7
    ),
    inside(
        "json: many lines",
        '{\n  "name": "write",\n  "arguments": {\n    "path": "hi",\n    "mode": 7\n  }\n}',
        path="hi",
        mode=7,
    ),
    inside(
        "json: carriage returns between",
        '{\r\n\t"name" : "write" ,\r\n\t"arguments" : {\r\n "path" : "hi" } \r\n}',
        path="hi",
    ),
    case(
        "json: no newlines around",
        '<tool_call>{"name": "write", "arguments": {"path": "hi"}}</tool_call>',
        call("write", path="hi"),
    ),
    inside("json: parameters", '{"name": "write", "parameters": {"path": "hi"}}', path="hi"),
    inside("json: arguments first", '{"arguments": {"path": "hi"}, "name": "write"}', path="hi"),
    inside("json: parameters first", '{"parameters": {"path": "hi"}, "name": "write"}', path="hi"),
    inside(
        "json: another member first",
        '{"type": "function", "name": "write", "arguments": {"path": "hi"}}',
        path="hi",
    ),
    inside(
        "json: another member between",
        '{"name": "write", "id": 7, "arguments": {"path": "hi"}}',
        path="hi",
    ),
    inside(
        "json: another member after",
        '{"name": "write", "arguments": {"path": "hi"}, "id": "call_1"}',
        path="hi",
    ),
    inside(
        "json: arguments as a string",
        r'{"name": "write", "arguments": "{\"path\": \"a\\nb\"}"}',
        path="a\nb",
    ),
    inside("json: null arguments", '{"name": "write", "arguments": null}'),
    inside("json: arguments left out", '{"name": "write"}'),
    inside(
        "json: strings with tags and brackets",
        '{"name": "write", "arguments": {"path": "}]{[</tool_call><tool_call>", "content": ","}}',
        path="}]{[</tool_call><tool_call>",
        content=",",
    ),
    inside(
        "json: strings with escapes",
        r'{"name": "write", "arguments": {"path": "C:\\a\\", "content": "\"\u00e9\ud83c\udf89\/"}}',
        path="C:\\a\\",
        content='"é🎉/',
    ),
    inside(
        "json: other scripts",
        '{"name": "write", "arguments": {"é": "日本 🎉"}}',
        **{"é": "日本 🎉"},
    ),
    inside(
        "json: 40 kB",
        '{"name": "write", "arguments": {"content": "' + "line <\\n" * 5000 + '"}}',
        content="line <\n" * 5000,
    ),
    inside(
        "json: a call in XML inside a string",
        '{"name": "write", "arguments": {"path": "<tool_call>\\n<function=now>\\n</function>"}}',
        path="<tool_call>\n<function=now>\n</function>",
    ),
)

REPAIRED: Final[tuple[Case, ...]] = (
    inside(
        "json: the last brace is missing",
        '{"name": "write", "arguments": {"path": "hi"}',
        path="hi",
    ),
    inside(
        "json: both last braces are missing",
        '{"name": "write", "arguments": {"path": "hi"',
        path="hi",
    ),
    inside(
        "json: three brackets are missing",
        '{"name": "write", "arguments": {"a": [1, {"b": 2}',
        a=[1, {"b": 2}],
    ),
    inside(
        "json: brackets are missing after a comma",
        '{"name": "write", "arguments": {"path": "hi", "mode": 7,',
        path="hi",
        mode=7,
    ),
    case(
        "json: braces are missing, and another call",
        '<tool_call>\n{"name": "write", "arguments": {"mode": True\n</tool_call>\n' + NOW,
        call("write", mode=True),
        call("now"),
    ),
    case(
        "json: the last brace and the closer are missing",
        '<tool_call>\n{"name": "write", "arguments": {"path": "hi"}',
        call("write", path="hi"),
    ),
    case(
        "json: no closer",
        '<tool_call>\n{"name": "write", "arguments": {"path": "hi"}}',
        call("write", path="hi"),
    ),
    case(
        "json: no closer, and another call",
        '<tool_call>\n{"name": "write", "arguments": {"path": "hi"}}\n' + NOW,
        call("write", path="hi"),
        call("now"),
    ),
    case(
        "json: no closer, and text",
        '<tool_call>\n{"name": "write", "arguments": {"path": "hi"}}\nDone',
        call("write", path="hi"),
        text="Done",
    ),
    case(
        "json: no closer, arguments first",
        '<tool_call>\n{"arguments": {"path": "hi"}, "name": "write"}',
        call("write", path="hi"),
    ),
    inside(
        "json: line breaks and tabs inside strings",
        '{"name": "write", "arguments": {"content": "a\n\tb\r\nc"}}',
        content="a\n\tb\r\nc",
    ),
    inside(
        "json: a backslash before a line break",
        '{"name": "write", "arguments": {"content": "a \\\n  b"}}',
        content="a \\\n  b",
    ),
    inside(
        "json: a line break inside a key",
        '{"name": "write", "arguments": {"a\nb": 1}}',
        **{"a\nb": 1},
    ),
    inside(
        "json: trailing commas",
        '{"name": "write", "arguments": {"a": [1, 2,], "b": {"c": 3 , \n },},}',
        a=[1, 2],
        b={"c": 3},
    ),
    inside(
        "json: Python's words",
        '{"name": "write", "arguments": {"a": True, "b": [False,None], "c": None}}',
        a=True,
        b=[False, None],
        c=None,
    ),
    inside(
        "json: Python's words in strings stay",
        '{"name": "write", "arguments": {"True": "None, False", "a": "x,}"}}',
        **{"True": "None, False", "a": "x,}"},
    ),
)

NOT_CALLS: Final[tuple[Case, ...]] = (
    stays("json: an unknown tool", hermes("unknown", '{"a": 1}')[:-1] + ">."),
    stays("json: an unknown tool, arguments first", '<tool_call>{"arguments": {}, "name": "u"}'),
    stays("json: no name", '<tool_call>\n{"arguments": {"path": "hi"}}\n</tool_call>'),
    stays("json: a name that is a list", '<tool_call>\n{"name": ["now"]}\n</tool_call>'),
    stays("json: arguments that are a list", '<tool_call>{"name": "now", "arguments": [1]}'),
    stays("json: arguments that are a word", hermes("now", '"soon"')),
    stays("json: arguments that are a number", hermes("now", "7")),
    stays("json: single quotes", "<tool_call>\n{'name': 'now', 'arguments': {}}\n</tool_call>"),
    stays("json: arguments first, with a fault", '<tool_call>{"arguments": {,}, "name": "now"}'),
    stays("json: arguments first, not a number", '<tool_call>{"arguments":{"a":NaN},"name":"now"}'),
    stays(
        "json: arguments first, too large a number",
        '<tool_call>{"arguments": {"a": 1e999}, "name": "now"}</tool_call>',
    ),
    stays("json: no opener", '{"name": "now", "arguments": {}}'),
    stays("json: a list of calls", '<tool_call>\n[{"name": "now", "arguments": {}}]\n</tool_call>'),
    stays("json: deep", '<tool_call>{"a": ' + "[" * 3000 + "</tool_call>"),
    stays(
        "json: unusual, and longer than is waited for",
        '<tool_call>{"arguments": {"path": "' + "x" * 16_384 + '"}, "name": "write"}</tool_call>',
    ),
    case(
        "json: an unknown tool, then a known one",
        f"{hermes('unknown', '{}')}\n{NOW}",
        call("now"),
        text=hermes("unknown", "{}"),
    ),
    case("json: not a number", hermes("write", '{"mode": NaN}'), cut("write", '{"mode": NaN}')),
    case("json: a value is missing", hermes("write", '{"mode": }'), cut("write", '{"mode": }')),
    case("json: a wrong bracket", hermes("write", '{"a": [1}}'), cut("write", '{"a": [1}}')),
    case(
        "json: a fault, then another call",
        hermes("write", '{"path": hi}') + "\n" + NOW,
        cut("write", '{"path": hi}'),
        call("now"),
    ),
)

SEVERAL: Final[tuple[Case, ...]] = (
    case("json: two calls", f"{NOW}\n{NOW}", call("now"), call("now")),
    case("json: two calls without a newline between", NOW + NOW, call("now"), call("now")),
    case(
        "json: text around",
        f"First.\n\n{NOW}\nSecond.\n" + hermes("write", '{"path": "hi"}') + "\n\nThird.",
        call("now"),
        call("write", path="hi"),
        text="First.Second.Third.",
    ),
    case(
        "json: after XML",
        f"{xml('write', path='hi')}\n{NOW}",
        call("write", path="hi"),
        call("now"),
    ),
    case(
        "json: before XML, and text",
        f"{NOW}\nand\n{xml('write', path='hi')}\nend",
        call("now"),
        call("write", path="hi"),
        text="andend",
    ),
    case(
        "json: unusual forms in a row",
        '<tool_call>{"name": "now"}</tool_call><tool_call>{"arguments": {}, "name": "now"}'
        "</tool_call>" + NOW,
        call("now"),
        call("now"),
        call("now"),
    ),
)

JSON_CALLS: Final = FORMS + REPAIRED + NOT_CALLS + SEVERAL
