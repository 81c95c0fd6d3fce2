"""Capacity: the engines that can take work and their routing targets, refreshed link by link.

A frame changes one engine, so it costs no look at the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final

from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.dispatch.roster import Roster
from qwenfleet.deployments.dispatch.routing import Speed, Target, has_room, middle_speed
from qwenfleet.deployments.wire.liveness import Condition

MIDDLE_S: Final = 0.5
"""How long a median speed is used: hosts learn theirs over many steps, so it moves slowly."""


class Capacity:
    """What a roster's engines can take now."""

    def __init__(self, roster: Roster, clock: Callable[[], float]) -> None:
        self._roster = roster
        self._clock = clock
        self._limits: list[int] = []
        self._states: dict[EngineLink, tuple[bool, bool, Condition]] = {}
        self._usable: dict[int, list[EngineLink]] = {}
        self._targets: dict[EngineLink, list[Target]] = {}
        self._middles: dict[int, tuple[float, Speed]] = {}

    def note(self, link: EngineLink) -> bool:
        """Take news of a link; returns True if the engines that can take work may be others."""
        self.changed(link)
        state = (link.is_open, link.is_draining, link.condition)
        if self._states.get(link) == state:
            return False
        self._states[link] = state
        self._reset()
        return True

    def changed(self, link: EngineLink) -> None:
        """Take note that the load of a link has changed."""
        self._targets.pop(link, None)

    def lost(self, link: EngineLink) -> None:
        """Forget a link that the roster has removed."""
        self._targets.pop(link, None)
        self._states.pop(link, None)
        self._reset()

    def sent(self, link: EngineLink, dp_rank: int, tokens: int) -> None:
        """Count a request just sent until the engine reports its load again."""
        targets = self._targets.get(link)
        if targets is not None:
            self._targets[link] = [
                target._replace(
                    streams=target.streams + 1,
                    queued_prefill_tokens=target.queued_prefill_tokens + tokens,
                )
                if target.dp_rank == dp_rank
                else target
                for target in targets
            ]

    @property
    def most_tokens(self) -> int | None:
        """A request of this many tokens is too long for every connected engine; None without
        one."""
        return self._limits[-1] if self._limits else None

    def size(self, length_tokens: int) -> int:
        """The number of different engine limits that a request of this length has outgrown."""
        return bisect_right(self._limits, length_tokens)

    def usable(self, size: int) -> list[EngineLink]:
        """Links that can take work of this size, as `Roster.usable` chooses them."""
        links = self._usable.get(size)
        if links is None:
            least_tokens = self._limits[size - 1] if size else 0
            links = self._usable[size] = self._roster.usable(least_tokens)
        return links

    def targets(self, links: Sequence[EngineLink]) -> list[Target]:
        """Routing targets for every data-parallel rank of these engines."""
        return [target for link in links for target in self._of(link)]

    def has_gained(self, link: EngineLink, size: int, tokens: int) -> bool:
        """True if this engine has room for a moving stream of `tokens`, as `routing.has_room`
        defines it."""
        if link not in self.usable(size):
            return False
        middle = self._middle(size)
        return any(has_room(target, tokens, middle) for target in self._of(link))

    def _of(self, link: EngineLink) -> list[Target]:
        targets = self._targets.get(link)
        if targets is None:
            targets = self._targets[link] = link.targets()
        return targets

    def _middle(self, size: int) -> Speed:
        """Median speed of the engines for this size, at most MIDDLE_S old."""
        now = self._clock()
        at, speed = self._middles.get(size, (now, None))
        if speed is None or now - at >= MIDDLE_S:
            speed = middle_speed(self.targets(self.usable(size)))
            self._middles[size] = (now, speed)
        return speed

    def _reset(self) -> None:
        self._limits = self._roster.limits
        self._usable.clear()
        self._middles.clear()
