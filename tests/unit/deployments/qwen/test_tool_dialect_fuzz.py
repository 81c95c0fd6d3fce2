"""Tests the reader of tool calls with answers that a grammar makes, right ones and broken ones."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tool_calls.case import STRING, TOOLS, Call, call, hermes, xml
from tests.tool_calls.reading import Answer, calls_of, expected, read

TYPES = TOOLS["write"]["properties"] | TOOLS["run"]["properties"] | {"other": STRING}

WORDS = st.sampled_from(
    ("a", "é🎉", '"', "\\", "'", "{", "}", "0", "null", "<", "< b", "<b>", "</p>", "x <= y")
)
QUOTES = st.sampled_from(
    (
        "`<tool_call>`",
        "</parameter> a",
        "</function> a",
        "</tool_call> a",
        "<tool_call> a",
        "<parameter=mode> a",
        "<function=write> a",
        "</ parameter>",
    )
)
GAPS = st.sampled_from(("", "\n", "\n\n", " ", "\t", "\r\n"))
TEXTS = st.lists(WORDS | QUOTES, min_size=1, max_size=5).map(" ".join)
CALLS_IN_VALUES = st.sampled_from((xml("now"), xml("write", path="a\nb"), hermes("now", "{}")))
VALUES = st.lists(GAPS | WORDS.map("{} ".format) | QUOTES | CALLS_IN_VALUES, max_size=6).map(
    "".join
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def value_of(name: str) -> st.SearchStrategy[Any]:
    """Values of a declared parameter, as the client should get them."""
    match TYPES[name]["type"]:
        case "integer":
            return st.integers()
        case "array":
            return st.lists(TEXTS, max_size=3)
        case "object":
            return st.dictionaries(TEXTS, JSON, max_size=3)
        case _:
            return VALUES


@st.composite
def calls(draw: st.DrawFn) -> tuple[Call, str]:
    """A call, and how a model writes it."""
    name = draw(st.sampled_from(sorted(TOOLS)))
    keys = draw(st.lists(st.sampled_from(sorted(TYPES)), unique=True, max_size=4))
    if name != "write":  # so that each value has the type of its name
        keys = [key for key in keys if key in (*TOOLS[name]["properties"], "other")]
    else:
        keys = [key for key in keys if key in ("path", "content", "mode", "other")]
    arguments = {key: draw(value_of(key)) for key in keys}
    if draw(st.booleans()):
        return call(name, **arguments), hermes(name, json.dumps(arguments, ensure_ascii=False))
    written = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in arguments.items()
    }
    return call(name, **arguments), xml(name, **written)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[str | Call], str]:
    """The texts and calls of an answer, and how a model writes them."""
    parts: list[str | Call] = []
    output = ""
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            parts.append(draw(TEXTS))
            output += f"{parts[-1]}{draw(GAPS)}"
        part, written = draw(calls())
        parts.append(part)
        output += written + draw(GAPS)
    if draw(st.booleans()):
        parts.append(draw(TEXTS))
        output += str(parts[-1])
    return parts, output


def cut_up(output: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(output), *(place % (len(output) + 1) for place in places)})
    return [output[a:b] for a, b in pairwise(bounds)]


PLACES = st.lists(st.integers(0, 10**6), max_size=8)


def texts_of(answer: Answer) -> list[str]:
    return [part for part in answer if isinstance(part, str)]


@given(answers(), PLACES)
@settings(max_examples=250)
def test_what_was_put_in_comes_out(made: tuple[Answer, str], places: list[int]) -> None:
    parts, output = made
    found = read(TOOLS, cut_up(output, places))
    assert calls_of(found) == expected(part for part in parts if isinstance(part, Call))
    assert texts_of(found) == texts_of(parts)
    assert [type(part) for part in found] == [type(part) for part in parts]


# Faults.

PIECES = re.compile(r"(</?\w+=?|[>{}\"\[\],:]|\n)")


@st.composite
def broken(draw: st.DrawFn) -> str:
    """An answer in which tags and marks are dropped, doubled, exchanged, or the end is cut off."""
    pieces = [piece for piece in PIECES.split(draw(answers())[1]) if piece]
    for _ in range(draw(st.integers(1, 3))):
        one = draw(st.integers(0, len(pieces) - 1))
        other = draw(st.integers(0, len(pieces) - 1))
        match draw(st.sampled_from(("drop", "double", "exchange", "cut"))):
            case "drop":
                pieces[one] = ""
            case "double":
                pieces[one] *= 2
            case "exchange":
                pieces[one], pieces[other] = pieces[other], pieces[one]
            case "cut":
                pieces = [*pieces[:one], pieces[one][: draw(st.integers(1, 3))]]
    return "".join(pieces)


@given(broken(), PLACES)
@settings(max_examples=250)
def test_faults_leave_calls_of_the_request_with_whole_objects(
    output: str, places: list[int]
) -> None:
    found = read(TOOLS, [output])
    assert {name for name, _ in calls_of(found)} <= set(TOOLS)
    assert read(TOOLS, cut_up(output, places)) == found
    assert read(TOOLS, output) == found


TOKENS = st.sampled_from(
    (
        *("<tool_call>", "</tool_call>", "<function=write>", "<function=now>", "<function=x>"),
        *("</function>", "<parameter=path>", "<parameter=mode>", "<parameter=z>", "</parameter>"),
        *("\n", "\n", "\n", " ", "a", "7", "<", ">", '"', "\\", "{", "}", "[", "]", ",", ":"),
        *('{"name": "write", "arguments": ', '"name": "now"', '"arguments"', "True", "None", "é"),
        *(" " * 64, "b" * 250, "</param", "<tool", "=mode>", "{}"),
    )
)


@given(st.lists(TOKENS, max_size=40), PLACES)
@settings(max_examples=400)
def test_tags_in_any_order_do_no_harm(tokens: list[str], places: list[int]) -> None:
    output = "".join(tokens)
    found = read(TOOLS, [output])
    assert {name for name, _ in calls_of(found)} <= set(TOOLS)
    assert read(TOOLS, cut_up(output, places)) == found
    assert read(TOOLS, output) == found


@given(st.lists(TOKENS, max_size=40))
def test_without_tools_all_is_text(tokens: list[str]) -> None:
    assert "".join(texts_of(read({}, tokens))) == "".join(tokens)
