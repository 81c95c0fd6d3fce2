"""`qwenfleet watch`: Prometheus with the chart's alerts beside a fleet of this machine, and top."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from qwenfleet.cluster import machine, prometheus, run_file, top_command, watch_files
from qwenfleet.cluster.errors import ConfigError, MachineError, MetricsError
from qwenfleet.cluster.prometheus import Alert, Prometheus, Target
from qwenfleet.cluster.run_file import RunningFleet
from qwenfleet.cluster.top_command import Find
from qwenfleet.cluster.top_table import Remark

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
        port = free_port(options.listen)
        with (
            top_command.ending_quietly(),
            prometheus.running(path, directory, port, options.retention) as server,
        ):
            print(f"Prometheus answers at {server.url}; open it in a browser", flush=True)
            options.url, options.once, options.json = None, False, False
            return top_command.run(
                options, follower.find, lambda: remarks(server, has_rules, time.time())
            )
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


def remarks(server: Prometheus, has_rules: bool, now_s: float) -> list[Remark]:
    """Whether Prometheus runs and sees the fleet, and which alerts there are."""
    if server.exit_status is not None:
        words = f", and said last: {server.last_words}" if server.last_words else ""
        sentence = (
            f"Prometheus has ended (status {server.exit_status}{words}): alerts are not known any "
            "more. Run `qwenfleet watch` again to have it back; the numbers below need it not."
        )
        return [Remark(sentence, is_bad=True)]
    try:
        seen = [_seen(server.url, target, now_s) for target in server.targets()]
        seen = seen or [Remark(f"Prometheus at {server.url} has no target yet", is_bad=False)]
        return seen + _alerts(server.alerts(), has_rules)
    except MetricsError as error:
        return [Remark(f"Prometheus at {error}", is_bad=True)]


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
    return Remark(f"Prometheus at {url} scraped the fleet {age_s:.0f} s ago", is_bad=age_s > LATE_S)


def _alerts(alerts: tuple[Alert, ...], has_rules: bool) -> list[Remark]:
    if not has_rules:
        return [Remark(f"no alerts: there is no {watch_files.RULES}", is_bad=True)]
    if not alerts:
        return [Remark("no alert fires", is_bad=False)]
    said = []
    for alert in alerts:
        which = ", ".join(f"{name} {value}" for name, value in sorted(alert.labels.items()))
        summary = f": {alert.summary}" if alert.summary else ""
        sentence = f"{alert.state}: {alert.name}{summary or f' ({which})'}"
        said.append(Remark(sentence, is_bad=alert.state == "firing"))
    return said


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for what Prometheus would stumble over."""
    if not RETENTION.fullmatch(options.retention):
        raise ConfigError(
            f"--retention {options.retention!r} is no time", "Write it like 90m, 2h or 7d."
        )
    if not 1 <= options.listen <= 65535:
        raise ConfigError(f"--listen {options.listen} is no port", "Take one from 1 to 65535.")


def free_port(wanted: int) -> int:
    """Debian's package may run a Prometheus of its own at 9090."""
    try:
        machine.check_port(prometheus.HOST, wanted)
    except MachineError as error:
        (port,) = machine.free_ports(1, prometheus.HOST)
        print(f"{error.problem}; taking {port} for Prometheus", flush=True)
        return port
    return wanted


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
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.cwd() == str(path):
                    process.kill()
        shutil.rmtree(path, ignore_errors=True)
