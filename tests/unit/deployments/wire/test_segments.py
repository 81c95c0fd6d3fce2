"""Frames are cut into segments and put together again, and nothing beyond a limit is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.wire.segments import WHOLE_BYTES, Assembler, parts, whole

MIB = 2**20
PART, LAST_PART = 1 << 24, 2 << 24


def header(value: int) -> bytes:
    return value.to_bytes(4, "big")


bodies = st.lists(st.binary(min_size=1, max_size=200), max_size=8)


@given(bodies, st.binary(min_size=1, max_size=5), st.lists(st.integers(1, 50), min_size=1))
def test_small_frames_between_the_parts_of_a_large_one_arrive_first(
    small: list[bytes], large: bytes, cuts: list[int]
) -> None:
    large = large * (3 * WHOLE_BYTES // len(large))
    pieces = list(parts(large))
    stream = b"".join([pieces[0], *map(whole, small), *pieces[1:]])
    assembler = Assembler(MIB)
    got = []
    for index in range(10_000):
        size = cuts[index % len(cuts)] ** 2 * 100
        got += assembler.feed(stream[:size])
        stream = stream[size:]
        if not stream:
            break
    assert got == [*small, large]


@pytest.mark.parametrize("size", [WHOLE_BYTES + 1, 2 * WHOLE_BYTES, 2 * WHOLE_BYTES + 1, MIB])
def test_a_large_frame_survives_its_cuts(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    segments = list(parts(body[:size]))
    assert all(len(segment) <= WHOLE_BYTES + 4 for segment in segments)
    assert Assembler(MIB).feed(b"".join(segments)) == [body[:size]]


@pytest.mark.parametrize(
    ("limit", "stream"),
    [
        (4096, header(4097)),
        (4096, header(LAST_PART | 4097)),
        (4096, header(PART | 4096) + bytes(4096) + header(PART | 1)),
        (4096, header(2**24 - 1)),
        (MIB, header(WHOLE_BYTES + 1)),
        (MIB, header(PART | WHOLE_BYTES + 1)),
        (4096, b"GET / HTTP/1.1\r\n"),
        (4096, b"\x16\x03\x01\x02\x00\x01"),
        (4096, header(2**32 - 1)),
    ],
    ids=["whole", "part", "second part", "16 MB", "wide", "wide part", "http", "tls", "ones"],
)
def test_what_is_above_a_limit_is_refused_at_its_header(limit: int, stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        Assembler(limit).feed(stream)


def test_a_raised_limit_counts_at_once() -> None:
    assembler = Assembler(4096)
    assert assembler.feed(whole(b"hello")) == [b"hello"]
    assembler.limit_bytes = MIB
    body = bytes(200_000)
    assert assembler.feed(b"".join(parts(body))) == [body]


@given(st.binary(max_size=3000), st.integers(1, 100))
def test_garbage_is_refused_or_kept_within_the_limit(garbage: bytes, step: int) -> None:
    assembler = Assembler(1000)
    try:
        for start in range(0, len(garbage), step):
            assembler.feed(garbage[start : start + step])
            assert len(assembler._rest) + len(assembler._large) <= 2 * 1000 + step + 4
    except ProtocolError:
        pass
