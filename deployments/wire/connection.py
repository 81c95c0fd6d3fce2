"""Connection: the frames of `frames` over asyncio's TCP streams."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.wire.frames import (
    LENGTH,
    MAX_FRAME_BYTES,
    AnyFrame,
    Frame,
    UnreadableSubmit,
    decode,
    encode,
)

logger = logging.getLogger(__name__)

MAX_BACKLOG_BYTES: Final = 64 * 1024 * 1024
"""A peer with this much unread data has stopped reading: at 8 KB a step that is 8,000 steps."""


class Connection:
    """A framed TCP connection. `receive` raises ConnectionError when the peer has disconnected."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def backlog_bytes(self) -> int:
        """Bytes sent but not yet read by the peer."""
        return self._writer.transport.get_write_buffer_size()

    def send(self, frame: Frame) -> None:
        """Queue a frame. Never blocks; a peer that stops reading is closed at MAX_BACKLOG_BYTES."""
        if self._writer.is_closing():
            return
        self._writer.write(encode(frame))
        if self.backlog_bytes > MAX_BACKLOG_BYTES:
            extra = {"backlog_bytes": self.backlog_bytes}
            logger.warning("peer stopped reading, closing the connection", extra=extra)
            self._writer.transport.abort()

    async def receive(self) -> AnyFrame | UnreadableSubmit:
        while True:
            try:
                (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                if length > MAX_FRAME_BYTES:
                    raise ProtocolError(
                        f"a frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}"
                    )
                frame = decode(await self._reader.readexactly(length))
            except asyncio.IncompleteReadError as error:
                raise ConnectionResetError("the peer closed the connection") from error
            if frame is not None:
                return frame

    async def flush(self, timeout_s: float) -> None:
        """Send queued frames before the process exits. Raises TimeoutError."""
        self._writer.transport.set_write_buffer_limits(high=0)
        async with asyncio.timeout(timeout_s):
            await self._writer.drain()

    def close(self) -> None:
        self._writer.close()
