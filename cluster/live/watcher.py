"""Notices on the scrapes and alerts of the Prometheus that `qwenfleet watch` started."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwenfleet.cluster.errors import FleetNotFound, MachineError, MetricsError
from qwenfleet.cluster.live import prometheus_files
from qwenfleet.cluster.live.prometheus import ActiveAlert, Prometheus, ScrapeTarget
from qwenfleet.cluster.live.screen import Find
from qwenfleet.cluster.live.table import Notice, printable
from qwenfleet.cluster.local.fleets import RunningFleet

LATE_S: Final = 10.0
"""Five scrapes."""


@dataclass
class FleetFinder:
    """Finds the fleet for `top`, and points Prometheus to its current port."""

    directory: Path
    ask: Find
    metrics_port: int = 0

    def find(self, port: int | None, name: str | None) -> RunningFleet:
        running = self.ask(port, name)
        self.follow(running)
        return running

    def follow(self, running: RunningFleet) -> None:
        if running.metrics_port != self.metrics_port:
            prometheus_files.point_to(self.directory, running.metrics_port)
            self.metrics_port = running.metrics_port


@dataclass
class Watcher:
    """Watches whether Prometheus runs and scrapes the fleet, and which alerts are active."""

    server: Prometheus
    standing: tuple[Notice, ...] = ()
    """Messages from the start, which a full screen would otherwise hide."""
    first_scrape: float | None = None
    """First successful scrape in seconds since the epoch."""

    @property
    def end(self) -> MachineError | None:
        """The error if Prometheus has exited; None while it runs."""
        if (status := self.server.exit_status) is None:
            return None
        message = self.server.last_message
        last = f", last log line: {message}" if message else ""
        return MachineError(
            f"Prometheus exited (status {status}{last}): alerts are no longer known",
            "Run `qwenfleet watch` again to restart it; the numbers below do not need it.",
        )

    def notices(self, now_s: float) -> list[Notice]:
        if (end := self.end) is not None:
            return [*self.standing, Notice(str(end), is_bad=True)]
        try:
            targets = self.server.targets()
            for target in targets:
                if target.health == "up" and self.first_scrape is None:
                    self.first_scrape = target.scraped_at
            seen = [_seen(self.server.url, target, now_s) for target in targets]
            url = self.server.url
            seen = seen or [Notice(f"Prometheus at {url} has no target yet", is_bad=False)]
            return [*self.standing, *seen, *self._alerts(self.server.alerts())]
        except MetricsError as error:
            return [*self.standing, Notice(f"Prometheus at {error}", is_bad=True)]

    def _alerts(self, alerts: tuple[ActiveAlert, ...]) -> list[Notice]:
        """Notices on alerts. Alerts on absence, pending since before the first scrape, are left
        out."""
        first = self.first_scrape
        shown = [a for a in alerts if a.state == "firing" or (first and a.since > first)]
        return [_alert(alert) for alert in shown] or [Notice("no alert is firing", is_bad=False)]


def _seen(url: str, target: ScrapeTarget, now_s: float) -> Notice:
    if target.health == "down":
        sentence = (
            f"Prometheus at {url} cannot scrape {target.url}: {target.error}. Check that the fleet "
            "is running and that nothing blocks the port."
        )
        return Notice(sentence, is_bad=True)
    if target.health != "up":
        return Notice(f"Prometheus at {url} has not scraped {target.url} yet", is_bad=False)
    age_s = max(0.0, now_s - target.scraped_at)
    late = age_s > LATE_S
    return Notice(f"Prometheus at {url} scraped the fleet {age_s:.0f} s ago", late, key="late")


def _alert(alert: ActiveAlert) -> Notice:
    which = ", ".join(f"{name} {value}" for name, value in sorted(alert.labels.items()))
    state = f"{alert.state} ({alert.severity})" if alert.severity else alert.state
    about = f": {alert.summary}" if alert.summary else f" ({which})" if which else ""
    is_firing = alert.state == "firing"
    runbook = f"; runbook: {alert.runbook}" if alert.runbook and is_firing else ""
    key = f"{state}: {alert.name} ({which})"
    return Notice(f"{state}: {alert.name}{about}{runbook}", is_firing, key, is_alert=True)


def as_lines(watcher: Watcher, follow: Callable[[], object], interval_s: float) -> None:
    """Print each problem and alert when it appears, and each alert when it is resolved, if the
    output is not a terminal. Raises MachineError when Prometheus exits."""
    before: dict[str, Notice] = {}
    while True:
        problems = []
        try:
            follow()
        except FleetNotFound as error:
            problems.append(Notice(str(error), is_bad=True))
        notices = [*problems, *watcher.notices(time.time())]
        if (end := watcher.end) is not None:  # lines have no use without Prometheus
            raise end
        now = {r.key or r.text: r for r in notices if r.is_bad or r.is_alert}
        lines = [notice.text for key, notice in now.items() if key not in before]
        lines += [f"resolved: {key}" for key, r in before.items() if key not in now and r.is_alert]
        for text in lines:
            print(f"{time.strftime('%H:%M:%S')} {printable(text)}", flush=True)
        before = now
        time.sleep(min(interval_s, LATE_S))
