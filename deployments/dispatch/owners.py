"""Owners: which engine has which requests, indexed by engine and by attempt. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.dispatch.link import EngineLink


class Owners:
    """An index over `Flight.link` and `Flight.key`: change neither while the flight is in here."""

    def __init__(self) -> None:
        self._flights: dict[EngineLink, dict[int, Flight]] = {}
        self._suspects: dict[EngineLink, set[Flight]] = {}

    def __iter__(self) -> Iterator[Flight]:
        return (flight for flights in self._flights.values() for flight in flights.values())

    def add(self, flight: Flight) -> None:
        """Record that the flight's engine has its current attempt."""
        assert flight.link is not None
        self._flights.setdefault(flight.link, {})[flight.key] = flight
        if flight.suspicion.is_suspect:
            self._suspects.setdefault(flight.link, set()).add(flight)

    def discard(self, flight: Flight) -> None:
        """Forget it, before it gets another engine, or none."""
        if flight.link is None:
            return
        flights = self._flights.get(flight.link)
        if flights is not None and flights.pop(flight.key, None) is not None and not flights:
            del self._flights[flight.link]
        self.cleared(flight)

    def cleared(self, flight: Flight) -> None:
        """Record that an owned flight is no longer a suspect."""
        if flight.link is None or not self._suspects:
            return
        suspects = self._suspects.get(flight.link)
        if suspects is not None:
            suspects.discard(flight)
            if not suspects:
                del self._suspects[flight.link]

    def get(self, link: EngineLink, key: int) -> Flight | None:
        """The flight whose current attempt this is; None if this engine does not own it."""
        flights = self._flights.get(link)
        return None if flights is None else flights.get(key)

    def of(self, link: EngineLink) -> list[Flight]:
        return list(self._flights.get(link, {}).values())

    def has_suspect(self, link: EngineLink) -> bool:
        return link in self._suspects
