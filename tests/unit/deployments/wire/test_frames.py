"""Frames cross the wire unchanged, and invalid bytes are a ProtocolError."""

from __future__ import annotations

import contextlib
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.wire import encoding, frames
from qwenfleet.deployments.wire.encoding import FrameTooLarge, decode, encode
from qwenfleet.deployments.wire.frames import (
    Abort,
    Alive,
    AnyFrame,
    Frame,
    Hello,
    Lease,
    Output,
    Outputs,
    RankLoad,
    Refused,
    Rejected,
    Submit,
    UnreadableSubmit,
    Welcome,
    numbered,
    shortened,
    speaks,
)
from qwenfleet.deployments.wire.tokens import TokenIds

KINDS: list[type[Frame]] = list(typing.get_args(AnyFrame))
INT64 = st.integers(-(2**63), 2**63 - 1)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: INT64,
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=64),
    type(None): st.none(),
    TokenIds: st.lists(st.integers(0, 2**32 - 1), max_size=4).map(TokenIds),
}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values for a field of this type: new fields and kinds are covered without a new test."""
    if annotation in SCALARS:
        return SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(*map(values_of, arguments), max_size=4)
    return structs(annotation)


def structs(kind: Any) -> st.SearchStrategy[Any]:
    fields = {field.name: values_of(field.type) for field in msgspec.structs.fields(kind)}
    return st.builds(typing.get_origin(kind) or kind, **fields)


any_frame = st.one_of([structs(kind) for kind in KINDS])


@given(any_frame)
def test_every_frame_survives_a_round_trip(frame: AnyFrame) -> None:
    assert decode(encode(frame)) == frame


@given(any_frame, st.dictionaries(st.text(), INT64 | st.text() | st.lists(INT64), max_size=3))
def test_fields_of_a_newer_peer_are_ignored(frame: AnyFrame, extra: dict[str, Any]) -> None:
    fields = msgspec.msgpack.decode(encode(frame))
    newer = {f"new_{name}": value for name, value in extra.items()} | fields
    assert decode(msgspec.msgpack.encode(newer)) == frame


@given(structs(Output[int]), st.lists(INT64, min_size=1, max_size=3))
def test_new_fields_of_a_newer_peers_output_follow_the_known_ones(
    output: Output, news: Any
) -> None:
    complete = msgspec.structs.replace(output, extra=output.extra or b"x")
    row = [*msgspec.msgpack.decode(msgspec.msgpack.encode(complete)), *news]
    body = msgspec.msgpack.encode({"kind": "outputs", "outputs": [row]})
    assert decode(body) == Outputs(outputs=[complete])


@given(st.text().filter(lambda kind: kind not in encoding._KINDS))
def test_a_kind_of_a_newer_peer_is_skipped(kind: str) -> None:
    assert decode(msgspec.msgpack.encode({"kind": kind, "anything": [1, {"a": None}]})) is None


@pytest.mark.parametrize(
    ("fields", "frame"),
    [
        ({"kind": "hello", "gateway": "g", "secret": "s"}, Hello("g", 1, "", b"")),
        ({"kind": "refused", "reason": "wrong secret"}, Refused("wrong secret", 1)),
        (
            {
                "kind": "submit",
                "request_id": "r",
                "attempt": 0,
                "prompt_token_ids": [1],
                "request": b"",
            },
            Submit("r", 0, TokenIds([1]), b"", None, TokenIds(), 0, None, None, False, None, 0),
        ),
        ({"kind": "alive"}, Alive([], [], 0, 0.0, 0.0)),
        (
            {"kind": "alive", "load": [{"running": 2, "kv_usage": 0.5}]},
            Alive([RankLoad(0, 2, 0, 0, 0.5, prefill_tokens_per_s=0.0, decode_step_s=0.0)]),
        ),
        ({"kind": "outputs", "outputs": [[5, [7]]]}, Outputs([Output(5, [7])], [], [], 0, 0.0)),
        (
            {"kind": "welcome", "engine": "e", "model": "m", "description": {"max_model_len": 9}},
            Welcome("e", "m", frames.EngineDescription(max_model_len=9), 0.0, b""),
        ),
    ],
)
def test_fields_that_an_older_peer_does_not_send_take_their_defaults(
    fields: dict[str, Any], frame: AnyFrame
) -> None:
    assert decode(msgspec.msgpack.encode(fields)) == frame


@given(structs(RankLoad))
def test_a_gateway_that_knows_no_speeds_reads_the_rest_of_a_load(load: RankLoad) -> None:
    class OldLoad(msgspec.Struct, omit_defaults=True, frozen=True):
        dp_rank: int = 0
        running: int = 0
        waiting: int = 0
        queued_prefill_tokens: int = 0
        kv_usage: float = 0.0

    old = msgspec.msgpack.decode(msgspec.msgpack.encode(load), type=OldLoad)
    known = ("dp_rank", "running", "waiting", "queued_prefill_tokens", "kv_usage")
    assert [getattr(old, name) for name in known] == [getattr(load, name) for name in known]


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_skipped(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n",
        encode(Lease())[:-1],
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode({"wire_ids": ["a"]}),
        msgspec.msgpack.encode({"kind": 7}),
        b"\x82\xa4kind\xa7refused\xa6reason\xa1\xff",
        b"\x81\xa4kind\xa1\xff",
        b"\x82\xa4kind\xa5lease\xa1x" + b"\x91" * 100_000 + b"\xc0",
        b"\x82\xa4kind\xa5novel\xa1x" + b"\x91" * 100_000 + b"\xc0",
    ],
    ids=[
        "nothing",
        "no msgpack",
        "http",
        "cut short",
        "no map",
        "no kind",
        "kind is a number",
        "text is not UTF-8",
        "kind is not UTF-8",
        "too deep",
        "too deep in a newer kind",
    ],
)
def test_invalid_bytes_are_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(body)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "abort", "wire_ids": "all"},
        {"kind": "abort"},
        {"kind": "abort", "wire_ids": ["x.0@gw-a"]},
        {"kind": "hello", "gateway": "g", "nonce": None},
        {"kind": "submit", "number": "0", "prompt_token_ids": [], "request": 0},
        {"kind": "submit", "prompt_token_ids": []},
        {"kind": "alive", "step": 1.5},
    ],
)
def test_a_known_kind_with_wrong_types_is_a_protocol_error_that_names_it(
    fields: dict[str, Any],
) -> None:
    with pytest.raises(ProtocolError, match=f"kind '{fields['kind']}'"):
        decode(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "fields",
    [{"prompt_token_ids": [1.5]}, {"max_tokens": "many"}, {}],
)
def test_a_submit_with_wrong_types_still_says_which_attempt_it_is(fields: dict[str, Any]) -> None:
    submit = {"kind": "submit", "request_id": "r", "number": 3, "request": b""} | fields
    unreadable = decode(msgspec.msgpack.encode(submit))
    assert isinstance(unreadable, UnreadableSubmit)
    assert unreadable.number == 3
    assert unreadable.problem


@pytest.mark.parametrize(
    ("here", "there", "is_pair"),
    [
        ("0.32.0", "0.32.0", True),
        ("0.32.0+cpu", "0.32.0+cu129", True),
        ("0.32.0", "0.32.1", False),
        ("0.32.0", "", True),
        ("", "0.32.0", True),
    ],
)
def test_only_equal_versions_of_vllm_pair(here: str, there: str, is_pair: bool) -> None:
    assert frames.pairs(here, there) is is_pair


@pytest.mark.parametrize(
    ("frame", "limit"),
    [
        (Abort([]), 64 * 1024),
        (Hello("g"), 4096),
        (Submit("r", 0, TokenIds(), b""), 16 * 1024 * 1024),
        (Outputs([]), 64 * 1024 * 1024),
    ],
)
def test_each_kind_of_frame_has_its_limit(frame: Frame, limit: int) -> None:
    assert frame.limit_bytes == limit


@pytest.mark.parametrize(
    "frame",
    [
        Abort([2**40] * 8000),
        Rejected(1, "x" * 65_530),
        Submit("r", 0, TokenIds(), b"x" * 16 * 2**20),
    ],
)
def test_a_frame_over_the_limit_of_its_kind_is_neither_sent_nor_read(frame: Frame) -> None:
    with pytest.raises(FrameTooLarge, match=f"a frame {type(frame).__name__} of .* limit of"):
        encode(frame)
    with pytest.raises(FrameTooLarge):
        decode(msgspec.msgpack.encode(frame, enc_hook=TokenIds.tolist))


def test_a_reason_is_shortened_to_what_every_frame_can_carry() -> None:
    assert shortened("the core died") == "the core died"
    encode(Rejected(1, shortened("\N{PILE OF POO}" * 1_000_000)))


@given(structs(Output[str]), st.integers(0, 2**63 - 1))
def test_a_numbered_output_differs_in_its_id_only(output: Output[str], number: int) -> None:
    named = msgspec.structs.asdict(output) | {"wire_id": number}
    assert msgspec.structs.asdict(numbered(output, number)) == named


@pytest.mark.parametrize(("protocol", "is_understood"), [(1, False), (2, True), (3, False)])
def test_only_the_same_protocol_version_is_understood(protocol: int, is_understood: bool) -> None:
    assert speaks(protocol) is is_understood
