"""A fleet under load, scraped by a real Prometheus whose rules use minutes in place of hours. Every
rule and panel has data, and no alert fires until an engine is lost."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwenfleet.cluster.alerts import recording, rule_file
from qwenfleet.cluster.live import prometheus, prometheus_files
from qwenfleet.cluster.local.ports import free_ports
from tests.watch import draw, live_panels
from tests.watch.live_panels import Choice

ODD = 'odd "name" \\ {x}|$(y)'
FLEET = f"""
name: watched
models:
  - id: coder
    source: smollm2-135m-instruct
    max_model_len: 2048
  - id: '{ODD}'
    source: tiny-qwen3-moe
    engine: scripted
    replicas: {{min: 2}}
    script: {{num_tokens: 200, step_s: 0.02}}
gateway: {{replicas: 2, port: {{port}}, no_engine_s: 240}}  # busy cores may start an engine slowly
slo: {{ttft_s: 60, inter_token_s: 60}}
"""
SCALE = 1 / 60
SETTLED_S = 300.0
"""Long enough for all windows of the scaled rules but the longest two, with a report every 10 s."""
LOADS = (
    {"model": "coder", "prompt": "def reverse(text):\n" * 20, "max_tokens": 24},
    {"model": ODD, "prompt": "x " * 200, "max_tokens": 200},
    {"model": ODD, "prompt": "y " * 200, "max_tokens": 200},
    {"model": "unknown", "prompt": "x"},
)
PAUSE_S = 2.0
pytestmark = [
    pytest.mark.watch,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing"),
]


@dataclass(frozen=True)
class Watched:
    """The fleet, and the Prometheus that scrapes it."""

    fleet: Any
    server: prometheus.Prometheus

    def ask(self, expr: str) -> Any:
        return live_panels.Prometheus(self.server.url).get("query", query=expr)["result"]

    def firing(self) -> set[tuple[str, str]]:
        """Name and model of each firing alert."""
        alerts = [alert for alert in self.server.alerts() if alert.state == "firing"]
        return {(alert.name, alert.labels.get("model", "")) for alert in alerts}


@pytest.fixture(scope="module")
def watched(run_fleet: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watch")
    prometheus_files.write(directory, rule_file.rules(SCALE))
    (port,) = free_ports(1, "127.0.0.1")
    stop = threading.Event()
    with run_fleet(FLEET, 3, tmp_path_factory.mktemp("fleet")) as fleet:
        metrics_port = httpx.URL(fleet.status()["metrics_url"]).port
        prometheus_files.point_to(directory, metrics_port or 0)
        threads = [threading.Thread(target=load, args=(fleet.url, body, stop)) for body in LOADS]
        for thread in threads:
            thread.start()
        try:
            with prometheus.running("prometheus", directory, port, "1d") as server:
                yield Watched(fleet, server)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def load(url: str, body: dict[str, Any], stop: threading.Event) -> None:
    """Send the same request repeatedly, and ignore failures."""
    with httpx.Client(timeout=120) as client:
        while not stop.wait(PAUSE_S):
            try:
                client.post(f"{url}/v1/completions", json=body | {"stream": True})
            except httpx.HTTPError:
                continue


def test_every_recording_rule_has_data(watched: Watched) -> None:
    names = {rule.name for group in recording.groups() for rule in group.rules}
    give_up_at = time.monotonic() + SETTLED_S
    while missing := {name for name in names if not watched.ask(name)}:
        assert time.monotonic() < give_up_at, f"no data: {sorted(missing)}"
        time.sleep(2)


def expect_data(watched: Watched, *have: str) -> None:
    """Wait for data in every panel, except those that need something that is not in `have`."""
    give_up_at = time.monotonic() + SETTLED_S
    while missing := live_panels.check(watched.server.url, "watched", have):
        assert time.monotonic() < give_up_at, [str(one) for one in missing]
        time.sleep(10)


def test_every_panel_has_data(watched: Watched) -> None:
    expect_data(watched, "a refused request")


def test_a_panel_without_data_is_named(watched: Watched) -> None:
    missing = live_panels.check(watched.server.url, "another fleet")
    assert any("qwenfleet-overview" in str(one) for one in missing)


def test_no_alert_keeps_firing_on_a_healthy_fleet(watched: Watched, expect: Any) -> None:
    """A scaled window holds two reports, so a few slow seconds look like a quarter of an hour."""
    expect(lambda: watched.firing() == set(), 120, "no alert fires")


def test_the_dashboards_are_drawn(watched: Watched, tmp_path: Path) -> None:
    if not draw.UPLOT.is_dir() or shutil.which("chromium") is None:
        pytest.skip("uPlot (.ci/watch_tools) or Chromium (.ci/browser) is missing")
    pictures = draw.draw(watched.server.url, tmp_path, Choice("watched"), 5)
    assert len(pictures) == 5
    assert min(picture.stat().st_size for picture in pictures) > 20_000


def test_the_loss_of_the_only_engine_of_a_model_fires_until_the_next_is_ready(
    watched: Watched, expect: Any
) -> None:
    watched.fleet.expect_ready("coder", 1)  # a slow one may be quarantined for a moment
    (engine,) = watched.fleet.ready("coder")
    url = f"{watched.fleet.url}/v1/completions"
    body = {"model": "coder", "prompt": "def f(", "max_tokens": 600, "stream": True}
    with httpx.stream("POST", url, json=body, timeout=300) as response:
        lines = response.iter_lines()
        next(lines)  # the stream has started
        os.kill(engine["pid"], signal.SIGKILL)
        see_the_loss(watched, expect, engine["id"])
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    expect_data(watched, "a refused request", "a lost engine")


def see_the_loss(watched: Watched, expect: Any, engine: str) -> None:
    expect(lambda: ("QwenfleetNoEngine", "coder") in watched.firing(), 60, "the alert fires")
    assert ("QwenfleetNoEngine", ODD) not in watched.firing()
    watched.fleet.expect_ready("coder", 1, lost=engine)
    expect(lambda: ("QwenfleetNoEngine", "coder") not in watched.firing(), 60, "it is over")
    lost = watched.ask('sum(ray_qwenfleet_engine_losses_total{model="coder", loss="reset"})')
    assert float(lost[0]["value"][1]) >= 1
