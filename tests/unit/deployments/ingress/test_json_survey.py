"""Tests the survey of a JSON text against what a parser finds in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.ingress.json_survey import Survey, survey

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a"\\[]{},:é\n', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet='k"\\[{,', max_size=3), inner, max_size=4)
    ),
    max_leaves=30,
)


def counted(value: Any) -> tuple[int, int]:
    """Return the strings and containers of a value, and its depth."""
    if isinstance(value, str):
        return 1, 0
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [counted(each) for each in (value.values() if isinstance(value, dict) else value)]
    names = len(value) if isinstance(value, dict) else 0
    deepest = max((depth for _, depth in inner), default=0)
    return 1 + names + sum(values for values, _ in inner), 1 + deepest


@given(JSON, st.booleans())
def test_the_survey_counts_what_a_parser_finds(value: Any, is_ascii: bool) -> None:
    found = survey(json.dumps(value, ensure_ascii=is_ascii).encode(), 1000, 100)
    assert (found.values, found.depth) == counted(value)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_can_be_surveyed(start: bytes, end: bytes) -> None:
    survey(start + b'{"a\\": [[' + end, 10, 3)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'["", "", ""]', Survey(values=3, commas=0, depth=0)),
        (b"[[], [], []]", Survey(values=4, commas=2, depth=0)),
        (b"[[[]]]", Survey(values=3, commas=0, depth=3)),
        (b"[1, 2, 3]", Survey(values=1, commas=2, depth=1)),
    ],
)
def test_it_stops_at_the_first_bound_that_is_exceeded(text: bytes, found: Survey) -> None:
    assert survey(text, 3 if text.startswith(b"[[[") else 2, 9) == found


def test_a_text_that_is_deeper_than_the_bound_is_one_level_deeper_at_least() -> None:
    assert survey(b"[" * 50 + b"]" * 50, 1000, 10).depth == 11
    assert survey(b"[" * 50, 1000, 10).depth == 50, "never closed"
