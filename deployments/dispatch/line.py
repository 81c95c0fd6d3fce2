"""Line: requests that wait for the same thing, in order of their turn. Pure.

Engines may differ in the longest request that they take, so a line has one queue for each size: the
number of these limits that a request has outgrown. A request that waits for a large engine holds up
none that would fit a smaller one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from qwenfleet.deployments.dispatch.flight import Flight, Turn


class TurnQueue:
    """Flights in order of the turn that they had when they were added. Adding and removing take
    O(log n) comparisons and one move of memory."""

    def __init__(self) -> None:
        self._order: list[tuple[Turn, Flight]] = []
        self._turns: dict[Flight, Turn] = {}

    def __len__(self) -> int:
        return len(self._order)

    @property
    def head(self) -> tuple[Turn, Flight]:
        """The flight whose turn is next, and that turn. Raises IndexError without any."""
        return self._order[0]

    def add(self, flight: Flight) -> None:
        turn = self._turns[flight] = flight.turn
        insort(self._order, (turn, flight))  # no two turns are equal, so flights never compare

    def discard(self, flight: Flight) -> None:
        turn = self._turns.pop(flight, None)
        if turn is not None:
            del self._order[bisect_left(self._order, (turn,))]


class Line:
    """Flights in order of their turn, by size. After `patience_s` seconds in line a flight is
    overdue."""

    def __init__(self, patience_s: float = math.inf) -> None:
        self._patience_s = patience_s
        self._sizes: dict[Flight, int] = {}
        self._queues: defaultdict[int, TurnQueue] = defaultdict(TurnQueue)
        self._blocked: dict[int, Flight] = {}
        """Heads for which no engine had room when all were last asked."""
        self._arrivals: deque[tuple[float, Flight]] = deque()
        """Flights by when they were parked, some of which have left since."""
        self._overdue: defaultdict[int, set[Flight]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, flight: Flight) -> bool:
        return flight in self._sizes

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._sizes)

    def add(self, flight: Flight, size: int) -> None:
        """Put a flight in line at its turn, also one that is in line already."""
        self.discard(flight)
        self._sizes[flight] = size
        self._queues[size].add(flight)
        if self._patience_s < math.inf:
            self._arrivals.append((flight.parked_at, flight))

    def discard(self, flight: Flight) -> None:
        size = self._sizes.pop(flight, None)
        if size is None:
            return
        self._queues[size].discard(flight)
        self._overdue[size].discard(flight)
        if self.is_blocked(size, flight):
            del self._blocked[size]
        if not self._sizes:
            self._arrivals.clear()

    def resize(self, size_of: Callable[[int], int]) -> None:
        """Sort all flights again after the engines' limits have changed. `size_of` gives the size
        of a request of so many tokens."""
        flights = list(self._sizes)
        overdue = {flight for flights in self._overdue.values() for flight in flights}
        self._queues.clear()
        self._overdue.clear()
        for flight in flights:
            size = self._sizes[flight] = size_of(flight.length_tokens)
            self._queues[size].add(flight)
            if flight in overdue:
                self._overdue[size].add(flight)

    def has_before(self, size: int) -> bool:
        """True if a flight waits for engines that would also take one of this size."""
        return any(queue for other, queue in self._queues.items() if other <= size)

    def head(self, below: float = math.inf) -> tuple[int, Flight] | None:
        """The flight of a size below `below` whose turn is next, with its size."""
        heads = [
            (queue.head, size) for size, queue in self._queues.items() if queue and size < below
        ]
        if not heads:
            return None
        (_, flight), size = heads[0] if len(heads) == 1 else min(heads, key=lambda head: head[0][0])
        return size, flight

    def note_time(self, now: float) -> None:
        """Record which flights have run out of patience."""
        while self._arrivals and self._arrivals[0][0] + self._patience_s <= now:
            parked_at, flight = self._arrivals.popleft()
            size = self._sizes.get(flight)
            if size is not None and flight.parked_at == parked_at:
                self._overdue[size].add(flight)

    def has_overdue(self, below: float = math.inf) -> bool:
        """True if a flight of a size below `below` has run out of patience."""
        return any(flights for size, flights in self._overdue.items() if size < below)

    # Who need not be asked again.

    def block(self, size: int, flight: Flight) -> None:
        """Note that no engine has room for the head of this size."""
        self._blocked[size] = flight

    def is_blocked(self, size: int, flight: Flight) -> bool:
        """True if only an engine with news can have room for this head."""
        return self._blocked.get(size) is flight

    def unblock(self, least_size: int = 0) -> None:
        """Ask every engine again for heads of at least this size."""
        for size in [size for size in self._blocked if size >= least_size]:
            del self._blocked[size]
