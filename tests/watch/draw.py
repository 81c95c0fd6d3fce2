"""`python -m tests.watch.draw PROMETHEUS_URL OUT_DIR`: pictures of the dashboards from live data.

Grafana does not draw them. An HTML page lays out the panels on Grafana's grid and draws their
series with uPlot, the library of Grafana's time-series panel, in headless Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx

from qwenfleet.cluster.chart.generate import DASHBOARD_FOLDER, ROOT
from qwenfleet.cluster.dashboards.grafana import DASHBOARDS
from qwenfleet.cluster.dashboards.panels import PanelQuery
from tests.watch.live_panels import Choice, Prometheus, Series

PAGE: Final = Path(__file__).with_name("page.html")
UPLOT: Final = ROOT / "build/watch/node_modules/uplot/dist"
"""Directory into which .ci/watch_tools installs it."""
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip
WIDTH_PX: Final = 1600
CELL_PX: Final = 38
"""Height of a row in Grafana's grid: 30 px, and 8 px between panels."""
HEAD_PX: Final = 104
POINTS: Final = 240
"""Points of each line."""


def panel_data(panel: dict[str, Any], prometheus: Prometheus, choice: Choice, span: range) -> Any:
    """A panel of a dashboard's JSON with the series that Grafana would ask for."""
    series: list[Series] = []
    for target in panel.get("targets", ()):
        query = PanelQuery(target["expr"], target["legendFormat"])
        if target.get("instant"):
            series += prometheus.at(query, choice, span[-1])
        else:
            series += prometheus.over(query, choice, span.start, span[-1], span.step)
    lines = [
        {"name": line.name, "labels": dict(line.labels), "points": line.points}
        for line in series
        if line.points
    ]
    return {**panel, "series": lines}


def page(dashboard: dict[str, Any], prometheus: Prometheus, choice: Choice, span: range) -> str:
    """A self-contained HTML page."""
    data = {
        "title": dashboard["title"],
        "links": [link["title"] for link in dashboard["links"]],
        "choice": {
            "Fleet": choice.fleet,
            "Model": " + ".join(choice.models) or "All",
            "Window": choice.window,
        },
        "span": [span.start, span[-1], span.step],
        "cell": CELL_PX,
        "panels": [panel_data(panel, prometheus, choice, span) for panel in dashboard["panels"]],
    }
    text = PAGE.read_text(encoding="utf-8")
    for mark, content in (
        ("/*UPLOT_CSS*/", (UPLOT / "uPlot.min.css").read_text(encoding="utf-8")),
        ("/*UPLOT_JS*/", (UPLOT / "uPlot.iife.min.js").read_text(encoding="utf-8")),
        ("/*DATA*/", "const DATA = " + json.dumps(data).replace("</", "<\\/")),
    ):
        text = text.replace(mark, content)
    return text


def shoot(html: str, picture: Path, height_px: int) -> None:
    """Write a picture of a page. Raises RuntimeError if Chromium is missing or fails."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"no browser on the PATH: install one of {', '.join(BROWSERS)}")
    picture.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "page.html"
        source.write_text(html, encoding="utf-8")
        done = subprocess.run(
            [
                browser,
                *FLAGS,
                f"--user-data-dir={folder}/profile",
                f"--window-size={WIDTH_PX},{height_px}",
                f"--screenshot={picture}",
                source.as_uri(),
            ],
            capture_output=True,
            timeout=120,
        )
    if not picture.exists():
        raise RuntimeError(f"{browser} drew nothing: {done.stderr.decode(errors='replace')[-500:]}")


def draw(url: str, folder: Path, choice: Choice, minutes: float) -> list[Path]:
    """Draw one picture of each dashboard, of the last `minutes`."""
    if not UPLOT.is_dir():
        raise RuntimeError(f"{UPLOT} does not exist: run .ci/watch_tools")
    folder.mkdir(parents=True, exist_ok=True)
    prometheus, pictures = Prometheus(url), []
    step = max(1, round(minutes * 60 / POINTS))
    end = int(time.time()) // step * step
    span = range(end - int(minutes * 60), end + 1, step)
    for declared in DASHBOARDS:
        needs = {panel.title: panel.needs for panel in declared.panels()}
        text = (ROOT / DASHBOARD_FOLDER / f"{declared.uid}.json").read_text(encoding="utf-8")
        dashboard = json.loads(text)
        for panel in dashboard["panels"]:
            panel["needs"] = needs.get(panel["title"], "")
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
        picture = folder.resolve() / f"{declared.uid}.png"
        shoot(page(dashboard, prometheus, choice, span), picture, rows * CELL_PX + HEAD_PX)
        pictures.append(picture)
    return pictures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.watch.draw", description=__doc__)
    parser.add_argument("url", metavar="PROMETHEUS_URL", help="such as http://127.0.0.1:9090")
    parser.add_argument("folder", metavar="OUT_DIR", type=Path)
    parser.add_argument("--fleet", help="name of the fleet (default: the only one in Prometheus)")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="model to show; repeat it for several (default: all)",
    )
    parser.add_argument("--minutes", type=float, default=15, help="minutes to draw (default 15)")
    parser.add_argument("--window", default="1m", help="window of rates, as in PromQL (default 1m)")
    options = parser.parse_args()
    try:
        return _draw(parser, options)
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError, ValueError, KeyError) as error:
        print(
            f"no pictures from {options.url}: {error}. Check that Prometheus runs there.",
            file=sys.stderr,
        )
        return 1


def _draw(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    fleets = [options.fleet] if options.fleet else Prometheus(options.url).fleets()
    if len(fleets) != 1:
        known = ", ".join(fleets) or "no fleet"
        parser.error(f"{options.url} has {known}: name one with --fleet")
    choice = Choice(fleets[0], tuple(options.model), options.window)
    for picture in draw(options.url, options.folder, choice, options.minutes):
        print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
