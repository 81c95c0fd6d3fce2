"""Repeated readings of a fleet's metrics, with the history of the last minute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from qwenfleet.cluster.errors import ConfigError, FleetError, FleetNotFound, MetricsError
from qwenfleet.cluster.live import address, exposition
from qwenfleet.cluster.live.exposition import ProcessReport
from qwenfleet.cluster.live.history import History, extended
from qwenfleet.cluster.live.view import FleetView, view

MOST_AT_ONCE: Final = 16
"""Maximum number of addresses that are read concurrently."""


@dataclass(frozen=True)
class Place:
    """Addresses of a fleet's metrics."""

    title: str
    urls: tuple[str, ...]
    models: tuple[str, ...] = ()
    """Configured models, whether they report or not."""


@dataclass(frozen=True)
class Reading:
    """Result of one round. `view` is None if nothing is known now: old numbers are not shown."""

    title: str
    view: FleetView | None
    problems: tuple[FleetError, ...]
    is_complete: bool
    """True if every process has reported twice, so that all rates are known."""
    is_silent: bool = False
    """True if every address answers, but no process of a fleet reports there."""


@dataclass
class Reader:
    """Reads a fleet. `find` runs before each round, because a restarted fleet has new ports."""

    find: Callable[[], Place]
    fleet: str | None = None
    """Name of the fleet, if several report at the same address."""
    fetch: Callable[[str], str] = address.read
    _history: History = field(default_factory=dict)
    _title: str = ""

    def read(self, now_s: Callable[[], float], wall_s: Callable[[], float]) -> Reading:
        """Read all addresses once. Raises ConfigError if several fleets match."""
        try:
            place = self.find()
        except FleetNotFound as error:
            return Reading(self._title, None, (error,), is_complete=False)
        self._title = place.title
        reports: list[ProcessReport] = []
        problems: list[FleetError] = []
        with ThreadPoolExecutor(min(len(place.urls), MOST_AT_ONCE)) as pool:
            for answer in pool.map(self._reports, place.urls):
                if isinstance(answer, MetricsError):
                    problems.append(answer)
                else:
                    reports += answer
        at_s = now_s()
        reports = self._of_one_fleet(reports)
        self._history = extended(self._history, reports, at_s, wall_s())
        if not reports:
            is_silent = not problems
            problems = problems or [_nothing(place)]
            return Reading(place.title, None, tuple(problems), False, is_silent)
        live = {report.process: report for report in reports}.values()
        shown = view(self._history, live, at_s, place.models)
        is_complete = all(len(self._history[report.process]) > 1 for report in live)
        return Reading(place.title, shown, tuple(problems), is_complete)

    def _reports(self, url: str) -> Sequence[ProcessReport] | MetricsError:
        try:
            return exposition.reports(self.fetch(url), url)
        except MetricsError as error:
            return error

    def _of_one_fleet(self, reports: Sequence[ProcessReport]) -> list[ProcessReport]:
        names = sorted({report.fleet for report in reports})
        if self.fleet is None and len(names) > 1:
            raise ConfigError(
                f"several fleets report there: {', '.join(names)}", "Name one with --fleet."
            )
        if self.fleet is not None and names and self.fleet not in names:
            raise ConfigError(
                f"no fleet named '{self.fleet}' reports there", f"These do: {', '.join(names)}."
            )
        return [report for report in reports if self.fleet in (None, report.fleet)]


def _nothing(place: Place) -> MetricsError:
    return MetricsError(
        ", ".join(place.urls),
        "has no metrics from a fleet's processes",
        "A process reports 10 s after its start; `qwenfleet status` shows what has started.",
    )
