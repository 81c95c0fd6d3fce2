"""The dashboards' queries on a live Prometheus, with their variables filled in as Grafana does."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from qwenfleet.cluster.dashboards.grafana import DASHBOARDS
from qwenfleet.cluster.dashboards.panels import Dashboard, Panel, PanelQuery
from qwenfleet.cluster.metrics import BUILD_INFO

VARIABLE: Final = re.compile(r"\$\{(?P<braced>\w+)(?::(?P<format>\w+))?\}|\$(?P<plain>[a-z]\w*)")
SPECIAL: Final = re.compile(r"[\\^$*+?.()|\[\]{}/]")
"""Characters that Grafana's `:regex` format escapes."""
LEGEND: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True)
class Series:
    """One line of a panel: seconds since the epoch, and the values there."""

    name: str
    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Missing:
    """A query without data."""

    dashboard: str
    panel: str
    expr: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}: no data for {self.expr}"


@dataclass(frozen=True)
class Choice:
    """Values of a dashboard's variables; an empty `models` means all."""

    fleet: str
    models: tuple[str, ...] = ()
    window: str = "1m"

    def fill(self, text: str) -> str:
        """Replace the variables in `text`; unknown ones stay, as in Grafana."""
        return VARIABLE.sub(self._value, text)

    def _value(self, found: re.Match[str]) -> str:
        models = self.models
        if found["format"] == "regex":
            models = tuple(SPECIAL.sub(r"\\\g<0>", model) for model in models)
        joined = models[0] if len(models) == 1 else f"({'|'.join(models)})"
        values = {
            "fleet": self.fleet,
            "interval": self.window,
            "deployment": ".*",
            "model": joined if models else ".*",
        }
        return values.get(found["braced"] or found["plain"], found[0])


@dataclass(frozen=True)
class Prometheus:
    """HTTP API of a Prometheus server."""

    url: str

    def get(self, path: str, **parameters: str | float) -> Any:
        """The `data` of an answer. Raises RuntimeError if it is not a success."""
        address = f"{self.url.rstrip('/')}/api/v1/{path}"
        answer = httpx.get(address, params=parameters, timeout=30)
        content = answer.json()
        if content["status"] != "success":
            raise RuntimeError(f"{path} {parameters}: {content['error']}")
        return content["data"]

    def fleets(self) -> list[str]:
        """Fleets with metrics in it."""
        return [
            str(name) for name in self.get("label/fleet/values", **{"match[]": BUILD_INFO.exported})
        ]

    def over(
        self, query: PanelQuery, choice: Choice, start: float, end: float, step: float
    ) -> list[Series]:
        """Series of a query for a graph."""
        data = self.get(
            "query_range", query=choice.fill(query.expr), start=start, end=end, step=step
        )
        return [_series(query, row["metric"], row["values"]) for row in data["result"]]

    def at(self, query: PanelQuery, choice: Choice, when: float) -> list[Series]:
        """Series of a query for a table."""
        data = self.get("query", query=choice.fill(query.expr), time=when)
        return [_series(query, row["metric"], [row["value"]]) for row in data["result"]]


def _series(query: PanelQuery, labels: dict[str, str], values: list[tuple[float, str]]) -> Series:
    name = LEGEND.sub(lambda found: labels.get(found[1], ""), query.legend)
    points = ((float(when), float(value)) for when, value in values)
    return Series(name, labels, tuple(point for point in points if point[1] == point[1]))


def panels() -> Iterator[tuple[Dashboard, Panel]]:
    """Every panel with its dashboard."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels():
            yield dashboard, panel


def check(
    url: str, fleet: str, have: Collection[str] = (), window: str = "1m", for_s: float = 300
) -> list[Missing]:
    """Queries without data in the last `for_s` seconds. Panels that need something that is not in
    `have` are skipped."""
    prometheus, choice, end = Prometheus(url), Choice(fleet, window=window), time.time()
    missing = []
    for dashboard, panel in panels():
        if panel.needs and panel.needs not in have:
            continue
        for query in panel.queries:
            series = prometheus.over(query, choice, end - for_s, end, 5)
            if not any(line.points for line in series):
                missing.append(Missing(dashboard.uid, panel.title, choice.fill(query.expr)))
    return missing
