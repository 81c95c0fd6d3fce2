"""Connection: the frames of `frames` over asyncio's streams.

`send` never waits. What the peer does not read yet waits in an OutputQueue, and a task writes it as
the peer reads. A peer is given up if it acknowledges no byte for STALL_S, however much waits.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import struct
import termios
from collections import deque
from contextlib import suppress
from typing import Final

from qwenfleet.deployments.wire import segments
from qwenfleet.deployments.wire.encoding import decode, encode
from qwenfleet.deployments.wire.frames import (
    SMALL_FRAME_BYTES,
    AnyFrame,
    Frame,
    UnreadableSubmit,
)
from qwenfleet.deployments.wire.output_queue import OutputQueue
from qwenfleet.deployments.wire.segments import Assembler

logger = logging.getLogger(__name__)

STALL_S: Final = 60.0
"""A gateway's event loop has been seen to stand for 39 s and to go on; a peer that acknowledges
nothing for longer is given up."""
TICK_S: Final = 1.0
"""Time between two looks at a peer that does not read. Looks are counted, not the time between
them, so that a process that stood still itself blames nobody."""
BUDGET_BYTES: Final = 4 * 1024 * 1024
"""`drain` waits while more than this waits to be sent: most of one 1M-token prompt."""
UNSENT_BYTES: Final = 128 * 1024
"""What the transport and the kernel may each hold unsent: a small frame overtakes only what waits
in the queue. At 1 Gbit/s these are 2 ms."""
INT: Final = struct.Struct("i")
READ_BYTES: Final = 256 * 1024
"""As much as asyncio reads at once."""


class Connection:
    """A framed connection. `receive` raises ConnectionError when the peer has disconnected."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit_bytes: int = SMALL_FRAME_BYTES,
    ) -> None:
        """Takes frames of up to `limit_bytes` from the peer, until `accept`."""
        self._reader = reader
        self._writer = writer
        self._assembler = Assembler(limit_bytes)
        self._bodies: deque[bytes] = deque()
        self._received_bytes = 0
        self._written_bytes = 0
        self._queue = OutputQueue()
        self._pump: asyncio.Task[None] | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()
        writer.transport.set_write_buffer_limits(high=UNSENT_BYTES)
        _limit_unsent(writer)

    @property
    def backlog_bytes(self) -> int:
        """Bytes sent but not yet taken by the kernel, which waits for the peer."""
        return self._queue.bytes + self._writer.transport.get_write_buffer_size()

    @property
    def moved_bytes(self) -> int:
        """Bytes received, and sent bytes that the kernel took. While it changes, the peer lives."""
        return self._received_bytes + self._taken_bytes

    @property
    def acknowledged_bytes(self) -> int:
        """Bytes received, and sent bytes that the peer's machine has acknowledged."""
        return self.moved_bytes - _unacknowledged(self._writer)

    def accept(self, limit_bytes: int) -> None:
        """Take frames of up to this size from now on: the peer is known."""
        self._assembler.limit_bytes = limit_bytes

    @property
    def is_holding(self) -> bool:
        """True if a large frame waits."""
        return self._queue.is_holding

    def holds(self, number: int) -> bool:
        """True if the next frame about this attempt has to wait for a large one."""
        return self._queue.holds(number)

    def send(self, frame: Frame) -> None:
        """Queue a frame. Never waits. Raises FrameTooLarge for one that no peer accepts."""
        if self._writer.is_closing():
            return
        body = encode(frame)
        if self._pump is None and len(body) <= segments.WHOLE_BYTES and not self._is_full:
            self._hand(segments.whole(body))  # nothing waits, as nearly always
            return
        self._queue.put(frame, body)
        if self._queue.bytes >= BUDGET_BYTES:
            self._has_room.clear()
        if self._pump is None:
            self._pump = asyncio.create_task(self._keep_writing())

    async def drain(self) -> None:
        """Wait until less than BUDGET_BYTES wait to be sent, or the connection is closed."""
        await self._has_room.wait()

    async def receive(self) -> AnyFrame | UnreadableSubmit:
        while True:
            while not self._bodies:
                data = await self._reader.read(READ_BYTES)
                if not data:
                    raise ConnectionResetError("the peer closed the connection")
                self._received_bytes += len(data)
                self._bodies.extend(self._assembler.feed(data))
            frame = decode(self._bodies.popleft())
            if frame is not None:
                return frame

    async def flush(self, timeout_s: float) -> None:
        """Send queued frames before the process exits. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            if self._pump is not None:
                await asyncio.wait({self._pump})
            self._writer.transport.set_write_buffer_limits(high=0)
            await self._writer.drain()

    def close(self) -> None:
        """Close. What the transport holds is still sent; what waits in the queue is not."""
        self._stop()
        self._writer.close()

    def abort(self) -> None:
        """Close at once, without sending what waits."""
        self._stop()
        self._writer.transport.abort()

    @property
    def _taken_bytes(self) -> int:
        return self._written_bytes - self._writer.transport.get_write_buffer_size()

    def _stop(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
        self._queue.clear()
        self._has_room.set()

    @property
    def _is_full(self) -> bool:
        return self._writer.transport.get_write_buffer_size() > UNSENT_BYTES

    def _hand(self, segment: bytes) -> None:
        self._written_bytes += len(segment)
        self._writer.transport.write(segment)

    async def _keep_writing(self) -> None:
        """Write the queue as the peer reads."""
        looks = 0
        taken_bytes = self._taken_bytes
        try:
            while self._queue and looks * TICK_S < STALL_S:
                while self._queue and not self._is_full:
                    self._hand(self._queue.next())
                if self._queue.bytes < BUDGET_BYTES:
                    self._has_room.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._writer.drain()
                        await asyncio.sleep(0)  # others may send, and small frames overtake
                looks = 0 if self._taken_bytes != taken_bytes else looks + 1
                taken_bytes = self._taken_bytes
            if self._queue:
                extra = {"backlog_bytes": self.backlog_bytes}
                logger.warning("peer stopped reading, closing the connection", extra=extra)
                self.abort()
        except OSError:
            self.abort()  # `receive` reports it
        finally:
            self._pump = None
            self._has_room.set()


def _unacknowledged(writer: asyncio.StreamWriter) -> int:
    """Return how many bytes the kernel holds until the peer acknowledges them, on Linux (tcp(7),
    SIOCOUTQ)."""
    connected = writer.get_extra_info("socket")
    waiting = bytearray(INT.size)
    if connected is not None:
        with suppress(OSError, ValueError):  # closed meanwhile
            fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, waiting)
    return int(INT.unpack(waiting)[0])


def _limit_unsent(writer: asyncio.StreamWriter) -> None:
    """Let the kernel hold little that is not on its way, on Linux (tcp(7), TCP_NOTSENT_LOWAT)."""
    unsent = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    connected = writer.get_extra_info("socket")
    if unsent is not None and connected is not None:
        with suppress(OSError):
            connected.setsockopt(socket.IPPROTO_TCP, unsent, UNSENT_BYTES)
