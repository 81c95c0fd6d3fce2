"""Token ids take 4 bytes each, whatever they look like to their users."""

from __future__ import annotations

import gc
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.wire.encoding import decode, encode
from qwenfleet.deployments.wire.frames import Submit, UnreadableSubmit
from qwenfleet.deployments.wire.tokens import TOKEN_BYTES, TokenIds

ids = st.lists(st.integers(0, 2**32 - 1))


@given(ids, ids)
def test_what_a_gateway_sends_is_what_an_engine_reads(prompt: list[int], output: list[int]) -> None:
    submit = Submit("r", 0, TokenIds(prompt), b"", output_token_ids=TokenIds(output), number=3)
    body = encode(submit)
    assert len(body) <= TOKEN_BYTES * (len(prompt) + len(output)) + 120
    read = decode(body)
    assert read == submit
    assert isinstance(read, Submit)
    assert read.prompt_token_ids.tolist() == prompt
    assert read.output_token_ids == output


@given(ids)
def test_packing_is_undone(tokens: list[int]) -> None:
    assert TokenIds.unpack(TokenIds(tokens).pack()) == tokens


def test_they_take_four_bytes_each_and_nothing_that_the_garbage_collector_visits() -> None:
    tokens = TokenIds(list(range(100_000)))
    assert sys.getsizeof(tokens) < 4 * 100_000 + 200
    assert not [found for found in gc.get_referents(tokens) if not isinstance(found, type)]


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ([1.5], "not a list of token ids"),
        ([-1], "negative"),
        ([2**32], "not a list of token ids"),
        ("text", "came as str"),
        (b"123", "multiple"),
    ],
)
def test_what_is_no_list_of_token_ids_costs_its_own_attempt_only(
    prompt: object, problem: str
) -> None:
    fields = {"kind": "submit", "request_id": "r", "attempt": 0, "request": b"", "number": 7}
    read = decode(msgspec.msgpack.encode(fields | {"prompt_token_ids": prompt}))
    assert isinstance(read, UnreadableSubmit)
    assert read.number == 7
    assert problem in read.problem
    assert "prompt_token_ids" in read.problem


def test_they_show_no_token_in_a_log() -> None:
    assert repr(TokenIds([1234, 5678])) == "<2 tokens>"


def test_they_equal_only_the_same_ids() -> None:
    assert TokenIds([1, 2]) == [1, 2]
    assert TokenIds([1, 2]) == TokenIds([1, 2])
    assert TokenIds([1, 2]) != [2, 1]
    assert TokenIds() != "text"
