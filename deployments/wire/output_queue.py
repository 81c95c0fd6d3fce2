"""OutputQueue: the frames that a connection has yet to send, small ones first.

Small frames overtake large ones, so that an abort or a token does not wait for megabytes. The
frames about one attempt keep their order: a small one waits if a large one about it does.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator
from typing import Final

from qwenfleet.deployments.wire import segments
from qwenfleet.deployments.wire.frames import Frame

MAX_PASSED: Final = 16
"""Small frames that may pass a large one between two of its segments, so that it arrives whatever
else is sent."""


class _Held:
    """A large frame, or a small one that must not overtake it."""

    def __init__(self, body: bytes, numbers: Collection[int]) -> None:
        is_small = len(body) <= segments.WHOLE_BYTES
        self.numbers = numbers
        self.left_bytes = len(body)
        self.pieces: Iterator[bytes] = (
            iter([segments.whole(body)]) if is_small else segments.parts(body)
        )


class OutputQueue:
    """Gives out segments in the order in which to send them."""

    def __init__(self) -> None:
        self.bytes = 0
        self._passed = 0
        """Small frames since the last segment of a large one."""
        self._small: deque[bytes] = deque()
        self._held: deque[_Held] = deque()
        self._numbers: Counter[int] = Counter()
        """Attempts that a held frame is about."""

    def __bool__(self) -> bool:
        return bool(self._small or self._held)

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def holds(self, number: int) -> bool:
        """True if the next frame about this attempt has to wait for a large one."""
        return number in self._numbers

    def put(self, frame: Frame, body: bytes) -> None:
        """Add an encoded frame."""
        is_small = len(body) <= segments.WHOLE_BYTES
        if is_small and (not self._held or self._numbers.keys().isdisjoint(frame.about())):
            segment = segments.whole(body)
            self._small.append(segment)
            self.bytes += len(segment)
            return
        held = _Held(body, tuple(frame.about()))
        self._held.append(held)
        self._numbers.update(held.numbers)
        self.bytes += held.left_bytes

    def next(self) -> bytes:
        """Take the next segment. Raises IndexError if the queue is empty."""
        if self._small and (not self._held or self._passed < MAX_PASSED):
            self._passed += 1
            segment = self._small.popleft()
            self.bytes -= len(segment)
            return segment
        self._passed = 0
        held = self._held[0]
        segment = next(held.pieces)
        sent = len(segment) - segments.HEADER.size
        held.left_bytes -= sent
        self.bytes -= sent
        if held.left_bytes <= 0:
            self._held.popleft()
            self._numbers -= Counter(held.numbers)
        return segment

    def clear(self) -> None:
        self._small.clear()
        self._held.clear()
        self._numbers.clear()
        self.bytes = 0
