"""Dashboards, rows, panels and queries as plain data; `grafana` renders them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["timeseries", "stat", "table", "states"]
Need = Literal["", "a GPU", "Ray's autoscaler", "a refused request", "a lost engine", "a drain"]
GRID: Final = 24
"""Columns of Grafana's grid."""
RATIO: Final = "percentunit"
SECONDS: Final = "s"
BYTES: Final = "bytes"
COUNT: Final = "short"
REQUESTS_PER_S: Final = "reqps"
TOKENS_PER_S: Final = "suffix: tok/s"
CORES: Final = "suffix: cores"
WATT: Final = "watt"
CELSIUS: Final = "celsius"


@dataclass(frozen=True)
class PanelQuery:
    """PromQL with Grafana's variables, and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. A `table` shows the last value of `column` by `row`, both labels; `states` are
    the numbers of `metrics.CLOSED["state"]` from 1 on."""

    title: str
    description: str
    """What it tells an operator."""
    unit: str
    queries: tuple[PanelQuery, ...]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    is_stacked: bool = False
    max: float | None = None
    steps: tuple[tuple[float | None, str], ...] = ()
    """Color thresholds: each applies from its value up; the first value is None."""
    row: str = ""
    column: str = ""
    needs: Need = ""
    """What its series require; "" means that any fleet under load has them."""


@dataclass(frozen=True)
class Row:
    """Panels under one heading, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; its uid is its Grafana URL and its file name."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    has_deployments: bool = False
    """Whether the dashboard has a deployment variable."""

    def panels(self) -> Iterator[Panel]:
        """Yield all panels, from the top."""
        for row in self.rows:
            yield from row.panels
