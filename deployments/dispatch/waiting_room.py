"""WaitingRoom: who waits at a gateway, for what, and who goes next.

Requests without an engine go first, and never wait for those that an engine still serves. Suspects
of a crash have a line of their own, because they go one at a time.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Final

from qwenfleet.deployments.dispatch.capacity import Capacity
from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.dispatch.line import Line
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.dispatch.owners import Owners
from qwenfleet.deployments.dispatch.routing import Target, choose, with_room
from qwenfleet.deployments.dispatch.trial_engine import TrialEngine

PATIENCE_S: Final = 2.0
"""A stream without an engine waits this long for one with room, then queues like a new request, and
so do those whose turn is before it."""
SENDS_PER_TURN: Final = 64
"""Requests sent at a time. A thousand that wait for the first engine take some 100 ms of a
gateway's loop, which must serve streams in between."""


class WaitingRoom:
    """Chooses the next request and its engine. `send` gives it to that engine; it must not raise,
    and may park the request again."""

    def __init__(
        self,
        capacity: Capacity,
        owners: Owners,
        *,
        rng: random.Random,
        send: Callable[[Flight, Target], None],
    ) -> None:
        self.trial_engine = TrialEngine()
        self._capacity = capacity
        self._owners = owners
        self._rng = rng
        self._send = send
        self._waiting = Line(PATIENCE_S)
        """Requests without an engine, but for suspects."""
        self._docket = Line()
        """Suspects without an engine."""
        self._leaving = Line()
        """Requests whose engine is leaving, but for suspects."""
        self._retrials: dict[Flight, None] = {}
        """Suspects on trial at an engine that is leaving: few, for a gateway tries one at a
        time."""
        self._leavers: set[EngineLink] = set()
        self._sends = 0

    def __len__(self) -> int:
        with_an_engine = len(self._leaving) + len(self._retrials)
        return len(self._waiting) + len(self._docket) + with_an_engine

    def __iter__(self) -> Iterator[Flight]:
        return itertools.chain(self._waiting, self._docket, self._leaving, self._retrials)

    # Who waits.

    def park(self, flight: Flight) -> None:
        """Let a request without an engine wait."""
        self.discard(flight)
        line = self._docket if flight.suspicion.is_suspect else self._waiting
        line.add(flight, self._capacity.size(flight.length_tokens))

    def owned(self, flight: Flight) -> None:
        """Note that an engine has taken the request, or that its turn may have changed: it waits to
        leave if the engine is leaving."""
        self.discard(flight)
        if flight.link in self._leavers:
            if flight.suspicion.is_suspect:
                self._retrials[flight] = None
            else:
                self._leaving.add(flight, self._capacity.size(flight.length_tokens))

    def discard(self, flight: Flight) -> None:
        self._waiting.discard(flight)
        self._docket.discard(flight)
        self._leaving.discard(flight)
        self._retrials.pop(flight, None)

    def follow(self, link: EngineLink) -> None:
        """Let the requests of an engine wait to leave once it is leaving, and stay if it has
        recovered."""
        if link.is_leaving != (link in self._leavers):
            (self._leavers.add if link.is_leaving else self._leavers.discard)(link)
            for flight in self._owners.of(link):
                self.owned(flight)

    def lost(self, link: EngineLink) -> None:
        self._leavers.discard(link)
        self.trial_engine.lost(link)

    def refit(self) -> None:
        """Ask every engine again: others than before can take work, or other lengths."""
        for line in (self._waiting, self._docket, self._leaving):
            line.resize(self._capacity.size)
            line.unblock()

    def clear(self) -> None:
        for flight in list(self):
            self.discard(flight)

    # Who goes next.

    def target_of(self, flight: Flight) -> Target | None:
        """The engine for a new request; None if it has to wait."""
        size = self._capacity.size(flight.length_tokens)
        if self._waiting.has_before(size):  # it must not overtake those that wait
            return None
        links = self.trial_engine.for_others(self._capacity.usable(size), self._owners.has_suspect)
        return choose(self._capacity.targets(links), flight.length_tokens, self._rng)

    def dispatch(self, now: float, news: EngineLink | None = None) -> bool:
        """Send requests to engines with room, in order of their turn; returns False if some must
        wait for the next call. `news`: only this engine can have gained room since the last
        one."""
        self._sends = SENDS_PER_TURN
        self._send_suspects()
        self._waiting.note_time(now)
        if self._send_waiting(news):
            self._send_leaving(news)
        else:
            self._leaving.unblock()  # it did not see the news
        return self._sends > 0

    def _send_suspects(self) -> None:
        below = math.inf
        while self._sends and (head := self._docket.head(below)) is not None:
            size, flight = head
            if not self._try(flight, size):
                below = size

    def _try(self, flight: Flight, size: int) -> bool:
        """Send a suspect to the trial engine, one at a time. The engine's host makes suspects of
        other gateways wait too."""
        links = [link for link in self._capacity.usable(size) if link is not flight.link]
        if flight.link is not None and all(link.is_leaving for link in links):
            return False  # the others are leaving too
        links = self.trial_engine.for_suspect(
            _without_refuser(flight, links), self._owners.has_suspect
        )
        target = choose(self._capacity.targets(links), flight.length_tokens, self._rng)
        if target is None:
            return False
        self._give(flight, target)
        self.trial_engine.link = flight.link
        return True

    def _send_waiting(self, news: EngineLink | None) -> bool:
        """Send requests without an engine; returns False if one could not go."""
        line, below = self._waiting, math.inf
        is_done = True
        while (head := line.head(below)) is not None:
            size, flight = head
            links = self._capacity.usable(size)
            if not links:
                below = size  # no engine takes this length now, nor a longer one
                continue
            # An overdue one may have the last turn: none before it waits for room any longer.
            needs_room = not line.has_overdue(below)
            if not self._sends:
                line.unblock()
                return False
            if not self._place(line, size, flight, links, needs_room, news):
                below, is_done = size, False  # longer ones must not overtake
                line.unblock(size + 1)  # they did not see the news
        return is_done

    def _send_leaving(self, news: EngineLink | None) -> None:
        """Send requests whose engine is leaving to others with room."""
        for flight in list(self._retrials):
            self._try(flight, self._capacity.size(flight.length_tokens))
        self._send_suspects()  # a retrial may have parked first
        line, below = self._leaving, math.inf
        while self._sends and (head := line.head(below)) is not None:
            size, flight = head
            grown = self._capacity.size(flight.length_tokens)
            if grown != size:
                line.add(flight, grown)
                continue
            links = self._capacity.usable(size)
            if not links or links[0].is_leaving:
                below = size  # the others are leaving too
            elif not self._place(line, size, flight, links, True, news):
                below = size
                line.unblock(size + 1)

    def _place(
        self,
        line: Line,
        size: int,
        flight: Flight,
        links: list[EngineLink],
        needs_room: bool,
        news: EngineLink | None,
    ) -> bool:
        """Send the head of a size to one of these engines; False if none has room."""
        tokens = flight.length_tokens
        if (
            needs_room
            and news is not None
            and line.is_blocked(size, flight)
            and not self._capacity.has_gained(news, size, tokens)
        ):
            return False
        targets = self._capacity.targets(_without_refuser(flight, links))
        if needs_room:
            targets = with_room(targets, tokens)
        target = choose(targets, tokens, self._rng)
        if target is None:
            line.block(size, flight)
            return False
        self._give(flight, target)
        return True

    def _give(self, flight: Flight, target: Target) -> None:
        self.discard(flight)  # first, so that no failure makes it the next one again
        self._sends -= 1
        self._send(flight, target)


def _without_refuser(flight: Flight, links: list[EngineLink]) -> list[EngineLink]:
    """The links without the last engine that refused this flight, unless it is the only one."""
    if flight.refused_by is None:
        return links
    return [link for link in links if link is not flight.refused_by] or links
