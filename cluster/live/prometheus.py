"""A Prometheus server as a child process, and its targets and alerts."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import urllib3

from qwenfleet.cluster.errors import MachineError, MetricsError

HOST: Final = "127.0.0.1"
START_S: Final = 30.0
"""Debian's 2.42 was ready after 0.4 to 1.4 s."""
STOP_S: Final = 10.0
ASK_S: Final = 1.0
_POOL: Final = urllib3.PoolManager(retries=False)


@dataclass(frozen=True)
class ScrapeTarget:
    url: str
    health: str
    """up, down, or unknown before the first scrape."""
    error: str
    scraped_at: float
    """Last scrape in seconds since the epoch; negative if never."""


@dataclass(frozen=True)
class ActiveAlert:
    name: str
    state: str
    """firing or pending."""
    labels: Mapping[str, str]
    summary: str
    severity: str = ""
    runbook: str = ""
    since: float = 0.0
    """Time at which it became pending, in seconds since the epoch."""


def targets(tree: Mapping[str, Any]) -> tuple[ScrapeTarget, ...]:
    """Targets from the answer of /api/v1/targets."""
    return tuple(
        ScrapeTarget(
            url=str(one["scrapeUrl"]),
            health=str(one["health"]),
            error=str(one.get("lastError", "")),
            scraped_at=_seconds(str(one["lastScrape"])),
        )
        for one in tree["data"]["activeTargets"]
    )


def alerts(tree: Mapping[str, Any]) -> tuple[ActiveAlert, ...]:
    """Alerts from the answer of /api/v1/alerts, firing ones first."""
    every = []
    for one in tree["data"]["alerts"]:
        labels, notes = dict(one["labels"]), one.get("annotations", {})
        every.append(
            ActiveAlert(
                name=labels.pop("alertname", ""),
                state=str(one["state"]),
                severity=labels.pop("severity", ""),
                labels=labels,
                summary=str(notes.get("summary", "")),
                runbook=str(notes.get("runbook_url", "")),
                since=_seconds(str(one["activeAt"])) if "activeAt" in one else 0.0,
            )
        )
    return tuple(sorted(every, key=lambda alert: (alert.state != "firing", alert.name)))


def log_message(line: str) -> str:
    """Message and error in a line of Prometheus' log, without time, caller and level."""
    parts = []
    for key in ("msg", "err"):
        if found := re.search(rf'\b{key}=("(?:[^"\\]|\\.)*"|\S+)', line):
            text = found[1]
            with contextlib.suppress(ValueError):
                text = str(json.loads(text))
            parts.append(text)
    return (": ".join(parts) or line).rstrip(". ")


def _seconds(text: str) -> float:
    """Seconds since the epoch of a time as Go writes it: nanoseconds, and the year 1 for zero."""
    return datetime.fromisoformat(text).timestamp()


@dataclass(frozen=True)
class Prometheus:
    """The Prometheus process of this command, running or ended."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    @property
    def last_message(self) -> str:
        """Message of the last line in its log."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            return log_message(next((line.strip() for line in reversed(lines) if line.strip()), ""))
        return ""

    def targets(self) -> tuple[ScrapeTarget, ...]:
        """Scrape targets. Raises MetricsError if it does not answer."""
        return targets(self._ask("/api/v1/targets?state=active"))

    def alerts(self) -> tuple[ActiveAlert, ...]:
        """Active alerts. Raises MetricsError if it does not answer."""
        return alerts(self._ask("/api/v1/alerts"))

    def is_ready(self) -> bool:
        try:
            return _POOL.request("GET", f"{self.url}/-/ready", timeout=ASK_S).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _ask(self, path: str) -> Any:
        try:
            answer = _POOL.request("GET", self.url + path, timeout=ASK_S, redirect=False)
            if answer.status == 200:
                return answer.json()
            problem = f"answers with status {answer.status}"
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            problem = f"does not answer ({type(error).__name__})"
        raise MetricsError(self.url, problem, "Alerts are unknown until it answers again.")


def program(name: str) -> str:
    """Path of the Prometheus binary. Raises MachineError."""
    found = shutil.which(name)
    if found is None:
        raise MachineError(
            f"Prometheus was not found: no program '{name}'",
            "Install it (Debian: `apt install prometheus`), set --prometheus, or run "
            "`qwenfleet top`, which does not need it.",
        )
    return found


@contextlib.contextmanager
def running(path: str, directory: Path, port: int, retention: str) -> Iterator[Prometheus]:
    """Run Prometheus on loopback until the end of the block, with configuration and data in
    `directory`. Raises MachineError if it does not start."""
    log = directory / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                path,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--storage.tsdb.retention.time={retention}",
                f"--web.listen-address={HOST}:{port}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            start_new_session=True,  # Ctrl-C reaches only this command, which then stops it
        )
    prometheus = Prometheus(process, f"http://{HOST}:{port}", log)
    try:
        _wait(prometheus)
        yield prometheus
    finally:
        _stop(process)


def _wait(prometheus: Prometheus) -> None:
    give_up_at = time.monotonic() + START_S
    while not prometheus.is_ready():
        if prometheus.exit_status is not None or time.monotonic() > give_up_at:
            raise MachineError(
                f"Prometheus did not start: {prometheus.last_message or 'no log output'}"[:400],
                "Try Debian's version (2.42), or run `qwenfleet top`, which does not need it.",
            )
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
