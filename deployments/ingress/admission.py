"""Admission: which requests a gateway takes, by their number and by the bytes of their bodies.

Serve has a limit too, but a request above it waits without an answer and without a deadline. So
this limit is lower, and refuses at once.

A client that sends its body slowly holds a place that others could use. When all places are taken,
the request that has waited longest for its body loses its own, after PATIENCE_S.

A share of the places and bytes is for quick requests, for which an editor waits. Whether a request
is quick is known when its body is: until then it may have such a place if its route can be quick.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from qwenfleet.cluster.config.fleet import GatewayConfig
from qwenfleet.deployments.ingress.errors import BodyTimeout, TooManyRequests
from qwenfleet.deployments.ingress.fim_fields import QUICK_BYTES

PATIENCE_S: Final = 5.0
"""Time that every client has for its body: 32 MB at 50 Mbit/s."""


class Place:
    """The place of one request."""

    def __init__(self, began_at: float, *, is_quick: bool) -> None:
        self.began_at = began_at
        self.is_quick = is_quick
        """Whether it counts as quick, maybe until its body is known."""
        self.body_bytes = 0
        """Bytes of its body so far."""
        self.is_lost = False
        """Whether another request has taken it, because the body was late."""
        self.limit: asyncio.Timeout | None = None
        """Ends the wait for its body."""


class Admission:
    """Gives out the places of one gateway. `clock` returns monotonic seconds."""

    def __init__(self, gateway: GatewayConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.body_bytes = 0
        """Bytes of the bodies of all open requests."""
        self._gateway = gateway
        self._clock = clock
        self._places: set[Place] = set()
        self._others: set[Place] = set()
        """Those that are not quick."""
        self._senders: dict[Place, None] = {}
        """Those whose bodies are not complete, in order of arrival."""

    @property
    def requests(self) -> int:
        """Open requests."""
        return len(self._places)

    @contextmanager
    def enter(self, *, may_be_quick: bool = False) -> Iterator[Place]:
        """Give a place to a request until it ends. Raises TooManyRequests."""
        place = Place(self._clock(), is_quick=may_be_quick)
        is_full = self.requests >= self._gateway.max_ongoing_requests
        has_no_room = not may_be_quick and len(self._others) >= self._most_others
        if (is_full or has_no_room) and not self._end_a_sender(None, but_quick=has_no_room):
            raise self._too_many()
        self._places.add(place)
        if not may_be_quick:
            self._others.add(place)
        try:
            yield place
        finally:
            self._free(place)

    @asynccontextmanager
    async def body_of(self, place: Place, timeout_s: float) -> AsyncIterator[None]:
        """Wait for a body, for so long at most. Raises BodyTimeout."""
        timeout_s = min(timeout_s, self._gateway.admission.body_timeout_s)
        self._senders[place] = None
        try:
            async with asyncio.timeout(timeout_s) as place.limit:
                yield
            if place.is_lost:
                raise TimeoutError
        except TimeoutError as error:
            waited_s = round(self._clock() - place.began_at, 1) if place.is_lost else timeout_s
            raise BodyTimeout(waited_s) from error
        finally:
            self._senders.pop(place, None)

    def count(self, place: Place, num_bytes: int) -> None:
        """Count more bytes of a body. Raises TooManyRequests if all bodies become too large, and
        TimeoutError if the request has lost its place."""
        if place.is_lost:
            raise TimeoutError
        if place.body_bytes + num_bytes > QUICK_BYTES:
            self.settle(place, is_quick=False)
        while self.body_bytes + num_bytes > self._most_bytes(place):
            if not self._end_a_sender(place):
                raise self._too_many_bytes()
        place.body_bytes += num_bytes
        self.body_bytes += num_bytes

    def settle(self, place: Place, *, is_quick: bool) -> None:
        """Note what kind a request has that had a place for quick ones. Raises TooManyRequests if
        it is another, and those have no room."""
        if is_quick or not place.is_quick:
            return
        place.is_quick = False
        self._others.add(place)
        if len(self._others) > self._most_others:
            raise self._too_many()
        if self.body_bytes > self._most_bytes(place):
            raise self._too_many_bytes()

    @property
    def _most_others(self) -> int:
        """Requests that are not quick, at most."""
        most = self._gateway.max_ongoing_requests
        return most - int(most * self._gateway.admission.fill_in_the_middle_share)

    def _most_bytes(self, place: Place) -> int:
        """Bytes of all bodies, at most, for this request to send more."""
        gateway = self._gateway
        most = max(gateway.admission.max_open_body_bytes, gateway.max_body_bytes)
        if place.is_quick:
            return most
        kept = int(most * gateway.admission.fill_in_the_middle_share)
        return max(most - kept, gateway.max_body_bytes)

    def _too_many(self) -> TooManyRequests:
        return TooManyRequests(f"{self.requests} requests", self._gateway.retry_after_s)

    def _too_many_bytes(self) -> TooManyRequests:
        held = f"requests with {self.body_bytes} bytes of bodies"
        return TooManyRequests(held, self._gateway.retry_after_s)

    def _end_a_sender(self, but: Place | None, *, but_quick: bool = False) -> bool:
        """Take the place of the request that has waited longest for its body; False if none has
        waited for long. `but_quick`: not that of a quick one."""
        senders = (place for place in self._senders if not (but_quick and place.is_quick))
        place = next((place for place in senders if place is not but), None)
        if place is None or self._clock() - place.began_at < PATIENCE_S:
            return False
        place.is_lost = True
        self._free(place)
        if place.limit is not None and not place.limit.expired():
            place.limit.reschedule(asyncio.get_running_loop().time())
        return True

    def _free(self, place: Place) -> None:
        if place in self._places:
            self._places.remove(place)
            self._others.discard(place)
            self._senders.pop(place, None)
            self.body_bytes -= place.body_bytes
