"""Segments: how frames lie in the bytes of a connection, so that large ones delay no small one.
Pure.

A segment is a 4-byte big-endian header, 8 bits of kind and 24 bits of length, and that many bytes.
A frame of up to WHOLE_BYTES is one segment. A larger one is cut into several, between which whole
frames may lie, but no part of another large frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.wire.frames import FIRST_FRAME_BYTES, SMALL_FRAME_BYTES

WHOLE_BYTES: Final = SMALL_FRAME_BYTES
HEADER: Final = struct.Struct(">I")
_LENGTH_BITS: Final = 24


class Kind(IntEnum):
    """What a segment holds. A whole frame of up to 16 MB looks as in protocol version 1, so that
    its programs can read why they are refused."""

    WHOLE = 0
    PART = 1
    """A part of a large frame, with more to come."""
    LAST_PART = 2


def whole(body: bytes) -> bytes:
    """Return the segment of a small frame."""
    return HEADER.pack(len(body)) + body


def parts(body: bytes) -> Iterator[bytes]:
    """Cut a large frame into segments."""
    view = memoryview(body)
    for start in range(0, len(body), WHOLE_BYTES):
        part = view[start : start + WHOLE_BYTES]
        kind = Kind.PART if start + WHOLE_BYTES < len(body) else Kind.LAST_PART
        yield HEADER.pack(kind << _LENGTH_BITS | len(part)) + part


class Assembler:
    """Puts frames together from the bytes of a connection, in the order in which they ended."""

    def __init__(self, limit_bytes: int = FIRST_FRAME_BYTES) -> None:
        self.limit_bytes = limit_bytes
        """Largest frame to accept; nothing beyond it is kept."""
        self._rest = b""
        """The beginning of a segment."""
        self._large = bytearray()
        """The parts of a large frame so far."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that these bytes complete. Raises ProtocolError for one above the
        limit, as soon as its header is there."""
        if self._rest:
            data = self._rest + data
        frames = []
        start, end = 0, len(data)
        while end - start >= HEADER.size:
            (header,) = HEADER.unpack_from(data, start)
            kind, length = header >> _LENGTH_BITS, header & (1 << _LENGTH_BITS) - 1
            self._check(kind, length)
            body_start = start + HEADER.size
            if end - body_start < length:
                break
            start = body_start + length
            body = data[body_start:start]
            if kind == Kind.WHOLE:
                frames.append(body)
                continue
            self._large += body
            if kind == Kind.LAST_PART:
                frames.append(bytes(self._large))
                self._large = bytearray()
        self._rest = data[start:]
        return frames

    def _check(self, kind: int, length: int) -> None:
        if kind > Kind.LAST_PART:
            raise ProtocolError(f"segments of kind {kind} do not exist")
        size = length if kind == Kind.WHOLE else len(self._large) + length
        limit = min(self.limit_bytes, WHOLE_BYTES) if kind == Kind.WHOLE else self.limit_bytes
        if size > limit or length > WHOLE_BYTES:
            raise ProtocolError(
                f"a frame of {max(size, length)} bytes exceeds the limit of {limit}"
            )
