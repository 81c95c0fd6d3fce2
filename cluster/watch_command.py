"""`qwenfleet watch`: Prometheus with the chart's alerts beside a fleet of this machine, and top."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from qwenfleet.cluster import machine, prometheus, run_file, top_command, watch_files
from qwenfleet.cluster.errors import ConfigError, FleetNotFound, MachineError, MetricsError
from qwenfleet.cluster.prometheus import Alert, Prometheus, Target
from qwenfleet.cluster.run_file import RunningFleet
from qwenfleet.cluster.top_command import Find
from qwenfleet.cluster.top_table import Remark, printable

RETENTION: Final = re.compile(r"(\d+(ms|[smhdwy]))+")
LATE_S: Final = 10.0
"""Five scrapes."""


def run(options: argparse.Namespace, find: Find) -> int:
    """Until Ctrl-C. Raises FleetNotFound without a fleet, MachineError without Prometheus."""
    _check(options)
    path = prometheus.program(options.prometheus)
    fleet = find(options.port, options.fleet)
    with _directory() as directory:
        has_rules = watch_files.write(directory)
        follower = Follower(directory, find)
        follower.follow(fleet)
        port, standing = free_port(options.listen)
        with (
            top_command.ending_quietly(),
            prometheus.running(path, directory, port, options.retention) as server,
        ):
            at = f"Prometheus answers at {server.url}; open it in a browser"
            if not sys.stdout.isatty():
                print("\n".join([*standing, at]), flush=True)
                watcher = Watcher(server, has_rules)
                as_lines(
                    watcher, lambda: follower.find(options.port, options.fleet), options.interval
                )
            watcher = Watcher(
                server, has_rules, tuple(Remark(t, is_bad=False) for t in [*standing, at])
            )
            options.url, options.once, options.json = None, False, False
            return top_command.run(options, follower.find, lambda: watcher.remarks(time.time()))
    return 0


@dataclass
class Follower:
    """Finds the fleet for `top`, and points Prometheus to where it has gone."""

    directory: Path
    ask: Find
    metrics_port: int = 0

    def find(self, port: int | None, name: str | None) -> RunningFleet:
        fleet = self.ask(port, name)
        self.follow(fleet)
        return fleet

    def follow(self, fleet: RunningFleet) -> None:
        if fleet.metrics_port != self.metrics_port:
            watch_files.point_to(self.directory, fleet.metrics_port)
            self.metrics_port = fleet.metrics_port


@dataclass
class Watcher:
    """Whether Prometheus runs and sees the fleet, and which alerts there are."""

    server: Prometheus
    has_rules: bool
    standing: tuple[Remark, ...] = ()
    """What was said at the start, and is not to be lost under a full screen."""
    first_scrape: float | None = None
    """That worked, in seconds since the epoch."""

    def remarks(self, now_s: float) -> list[Remark]:
        if (status := self.server.exit_status) is not None:
            words = f", and said last: {self.server.last_words}" if self.server.last_words else ""
            sentence = (
                f"Prometheus has ended (status {status}{words}): alerts are not known any more. "
                "Run `qwenfleet watch` again to have it back; the numbers below need it not."
            )
            return [*self.standing, Remark(sentence, is_bad=True)]
        try:
            targets = self.server.targets()
            for target in targets:
                if target.health == "up" and self.first_scrape is None:
                    self.first_scrape = target.scraped_at
            seen = [_seen(self.server.url, target, now_s) for target in targets]
            url = self.server.url
            seen = seen or [Remark(f"Prometheus at {url} has no target yet", is_bad=False)]
            return [*self.standing, *seen, *self._alerts(self.server.alerts())]
        except MetricsError as error:
            return [*self.standing, Remark(f"Prometheus at {error}", is_bad=True)]

    def _alerts(self, alerts: tuple[Alert, ...]) -> list[Remark]:
        """Without those that only wait for the first scrape, as an alert on absence does."""
        if not self.has_rules:
            return [Remark(f"no alerts: there is no {watch_files.RULES}", is_bad=True)]
        first = self.first_scrape
        told = [a for a in alerts if a.state == "firing" or (first and a.since > first)]
        return [_alert(alert) for alert in told] or [Remark("no alert fires", is_bad=False)]


def _seen(url: str, target: Target, now_s: float) -> Remark:
    if target.health == "down":
        sentence = (
            f"Prometheus at {url} cannot scrape {target.url}: {target.error}. Does the fleet run, "
            "and does nothing block the port?"
        )
        return Remark(sentence, is_bad=True)
    if target.health != "up":
        return Remark(f"Prometheus at {url} has not scraped {target.url} yet", is_bad=False)
    age_s = max(0.0, now_s - target.scraped_at)
    late = age_s > LATE_S
    return Remark(f"Prometheus at {url} scraped the fleet {age_s:.0f} s ago", late, key="late")


def _alert(alert: Alert) -> Remark:
    which = ", ".join(f"{name} {value}" for name, value in sorted(alert.labels.items()))
    state = f"{alert.state} ({alert.severity})" if alert.severity else alert.state
    about = f": {alert.summary}" if alert.summary else f" ({which})" if which else ""
    is_firing = alert.state == "firing"
    runbook = f"; runbook: {alert.runbook}" if alert.runbook and is_firing else ""
    key = f"{state}: {alert.name} ({which})"
    return Remark(f"{state}: {alert.name}{about}{runbook}", is_firing, key, is_alert=True)


def as_lines(watcher: Watcher, follow: Callable[[], object], interval_s: float) -> None:
    """Problems and alerts where there is no terminal, each when it comes, and an alert when it is
    over. Raises MachineError when Prometheus ends."""
    before: dict[str, Remark] = {}
    while True:
        problems = []
        try:
            follow()
        except FleetNotFound as error:
            problems.append(Remark(str(error), is_bad=True))
        remarks = [*problems, *watcher.remarks(time.time())]
        now = {r.key or r.text: r for r in remarks if r.is_bad or r.is_alert}
        if watcher.server.exit_status is not None:
            raise MachineError(*remarks[-1].text.split(". ", 1))
        said = [remark.text for key, remark in now.items() if key not in before]
        said += [f"over: {key}" for key, r in before.items() if key not in now and r.is_alert]
        for text in said:
            print(f"{time.strftime('%H:%M:%S')} {printable(text)}", flush=True)
        before = now
        time.sleep(min(interval_s, LATE_S))


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for what Prometheus would stumble over."""
    if not RETENTION.fullmatch(options.retention) or not re.search("[1-9]", options.retention):
        raise ConfigError(
            f"--retention {options.retention!r} is no time", "Write it like 90m, 2h or 7d."
        )
    if not 1 <= options.listen <= 65535:
        raise ConfigError(f"--listen {options.listen} is no port", "Take one from 1 to 65535.")


def free_port(wanted: int) -> tuple[int, list[str]]:
    """With a sentence when it is another than `wanted`: Debian's package may run a Prometheus
    of its own at 9090."""
    try:
        machine.check_port(prometheus.HOST, wanted)
    except MachineError as error:
        (port,) = machine.free_ports(1, prometheus.HOST)
        return port, [f"{error.problem}; taking {port} for Prometheus"]
    return wanted, []


@contextmanager
def _directory() -> Iterator[Path]:
    """Beside the fleets' own files, for this run only."""
    root = run_file.state_directory()
    sweep(root)
    path = Path(tempfile.mkdtemp(prefix=f"watch-{os.getpid()}-", dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(root: Path) -> None:
    """End and remove what a run left that was killed before it could."""
    for path in root.glob("watch-*-*"):
        pid = path.name.split("-")[1]
        if not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        killed = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.cwd() == str(path):
                    process.kill()
                    killed.append(process)
        psutil.wait_procs(killed, timeout=prometheus.STOP_S)  # it writes there until it is gone
        shutil.rmtree(path, ignore_errors=True)
