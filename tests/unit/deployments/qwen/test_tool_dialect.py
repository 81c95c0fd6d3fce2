"""Tests the reader of tool calls with the corpus, whole and in pieces, and counts its work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, SupportsIndex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenfleet.deployments.qwen.events import Arguments, CallEnd, CallStart, Event, Text
from qwenfleet.deployments.qwen.tool_dialect import ToolDialect
from tests.tool_calls.case import TOOLS, Case, xml
from tests.tool_calls.corpus import CASES
from tests.tool_calls.reading import calls_of, expected, read, text_of

SHORT = 200
"""Characters of an output that is cut at every place."""
of_each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def test_names_of_cases_differ() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


@of_each_case
def test_an_answer_has_the_text_and_the_calls_that_were_meant(case: Case) -> None:
    found = read(case.tools, [case.output])
    assert calls_of(found) == expected(case.calls)
    assert text_of(found) == case.text


@of_each_case
def test_an_answer_may_come_letter_by_letter(case: Case) -> None:
    assert read(case.tools, case.output) == read(case.tools, [case.output])


@pytest.mark.parametrize(
    "case", [each for each in CASES if len(each.output) <= SHORT], ids=lambda case: case.name
)
def test_an_answer_may_be_cut_in_two_anywhere(case: Case) -> None:
    whole = read(case.tools, [case.output])
    for at in range(1, len(case.output)):
        pieces = [case.output[:at], case.output[at:]]
        assert read(case.tools, pieces) == whole, pieces


@given(st.sampled_from(CASES), st.data())
@settings(max_examples=300)
def test_an_answer_may_come_in_any_pieces(case: Case, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(case.output)), max_size=12).map(sorted))
    bounds = [0, *places, len(case.output)]
    pieces = [case.output[a:b] for a, b in pairwise(bounds)]
    assert read(case.tools, pieces) == read(case.tools, [case.output])


@pytest.mark.parametrize("case", CASES[:30], ids=lambda case: case.name)
def test_a_cut_answer_has_a_prefix_of_the_arguments_or_of_the_text(case: Case) -> None:
    """At each place, what was sent of a call is the begin of what it would have been."""
    whole = calls_of(read(case.tools, [case.output]))
    sent = [call.arguments for call in read(case.tools, [case.output]) if not isinstance(call, str)]
    for at in range(len(case.output)):
        calls = [each for each in read(case.tools, [case.output[:at]]) if not isinstance(each, str)]
        assert len(calls) <= len(whole)
        for index, call in enumerate(calls):
            is_last = index == len(calls) - 1
            assert call.is_complete or is_last
            assert sent[index].startswith(call.arguments), case.output[:at]


# What a client sees while the answer comes.


def steps(*pieces: str) -> Iterator[list[Event]]:
    dialect = ToolDialect(TOOLS)
    for piece in pieces:
        yield dialect.feed(piece)
    yield dialect.finish()


def test_text_is_sent_as_it_comes() -> None:
    assert list(steps("I wi", "ll look", " <b", "> now")) == [
        [Text("I wi")],
        [Text("ll look")],
        [Text(" <b")],
        [Text("> now")],
        [],
    ]


def test_a_text_argument_is_sent_as_it_comes() -> None:
    head = "<tool_call>\n<function=write>\n<parameter=path>\n"
    assert list(steps(head, "a", '"b', "\nc", "\n</parameter>\n</function>\n</tool_call>")) == [
        [CallStart("write"), Arguments('{"path": ')],
        [Arguments('"a')],
        [Arguments('\\"b')],
        [Arguments("\\nc")],
        [Arguments('"'), Arguments("}"), CallEnd(is_complete=True)],
        [],
    ]


def test_a_typed_argument_is_sent_once_it_is_complete() -> None:
    head = "<tool_call>\n<function=write>\n<parameter=mode>\n4"
    assert list(steps(head, "2", "\n</parameter>\n</function>\n</tool_call>")) == [
        [CallStart("write"), Arguments('{"mode": ')],
        [],
        [Arguments("42"), Arguments("}"), CallEnd(is_complete=True)],
        [],
    ]


def test_a_long_text_that_may_be_something_else_is_sent_before_its_end() -> None:
    tools = {"f": {"properties": {"v": {"type": ["string", "array"]}}}}
    dialect = ToolDialect(tools)
    dialect.feed("<function=f>\n<parameter=v>\n")
    assert dialect.feed("x" * 64) == []
    assert dialect.feed("x") == [Arguments('"' + "x" * 65)]


def test_json_arguments_are_sent_as_they_come() -> None:
    assert list(steps('<tool_call>\n{"name": "write", "arguments": {"pa', 'th": "a', '"}}')) == [
        [CallStart("write"), Arguments('{"pa')],
        [Arguments('th": "a')],
        [Arguments('"}'), CallEnd(is_complete=True)],
        [],
    ]


# Cost, as the number of characters that are looked at.


class Counted(str):
    """Text that counts the characters that are copied, searched or compared."""

    looked_at = 0

    def __getitem__(self, key: SupportsIndex | slice) -> Counted:
        found = Counted(super().__getitem__(key))
        Counted.looked_at += len(found)
        return found

    def __add__(self, other: str) -> Counted:
        Counted.looked_at += len(self) + len(other)
        return Counted(super().__add__(other))

    def find(self, wanted: str, start: Any = None, end: Any = None, /) -> int:
        found = super().find(wanted, start, end)
        until = found if found >= 0 else len(self) if end is None else min(end, len(self))
        Counted.looked_at += max(until - (start or 0), 0) + 1
        return found

    def startswith(self, wanted: Any, start: Any = None, end: Any = None, /) -> bool:
        Counted.looked_at += len(wanted)
        return super().startswith(wanted, start, end)


def cost(shape: str, length: int, piece: int, tail: str = "") -> int:
    """The characters that are looked at for this many of a shape, which repeats after its head."""
    head, _, body = shape.rpartition("|")
    output = head + (body * (length // len(body) + 1))[:length] + tail
    Counted.looked_at = 0
    dialect = ToolDialect(TOOLS)
    for at in range(0, len(output), piece):
        dialect.feed(Counted(output[at : at + piece]))
    dialect.finish()
    return Counted.looked_at


VALUE = "<function=write>\n<parameter=content>\n|"
SHAPES = (
    "a word ",
    "<",
    " \n",
    "<tool_call>",
    '<tool_call>{"a": </tool_call>',
    "<function=write>\n",
    "<function=write " + "x" * 200,
    "<tool_call>\n<function=write>\n" + " " * 64,
    xml("write", path="a") + "\n",
    VALUE + "a word ",
    VALUE + "<",
    VALUE + " \n",
    VALUE + "</parameter>",
    VALUE + "</parameter>" + "\n" * 64,
    VALUE + "</function>\n",
    VALUE + "</tool_call>\n",
    VALUE + "<parameter=path",
    VALUE + "\n<parameter=path>",
    VALUE + "<tool_call>\n<function=now>",
    VALUE + xml("now"),
    '<tool_call>{"name": "write", "arguments": |{"a": [1, "b", True], ',
    '<tool_call>{"name": "write", "arguments": {"a": "|b ',
    '<tool_call>{"name": "write", "arguments": {"a": 1,| ',
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("piece", [1, 10**9])
def test_ten_times_the_answer_is_ten_times_the_work(shape: str, piece: int) -> None:
    assert cost(shape, 8_000, piece) <= 12 * cost(shape, 800, piece)


@pytest.mark.parametrize("shape", ['<tool_call>{"arguments": "|b ', "<tool_call>{"])
def test_what_waits_for_an_unusual_json_call_is_bounded(shape: str) -> None:
    """Such a text is copied with each piece, until it is too long to be one."""
    assert cost(shape, 160_000, 400) <= 5 * cost(shape, 40_000, 400)


def test_many_openers_share_the_search_for_a_closer() -> None:
    small, large = (cost("<tool_call>{x", n, 10**9, "</tool_call>") for n in (20_000, 200_000))
    assert large <= small + 20 * 200_000
