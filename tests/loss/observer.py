"""Watches a fleet from outside while a part of it is killed: probes, status, the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

PROBE_S = 0.25
FULL_S = 240
"""Time for a part to be back: an engine or gateway imports vLLM again, on two busy cores."""


@dataclass
class Observation:
    """What an observer saw from the strike to full service, or to the fleet's end."""

    part: str
    lost: int = 0
    changed: int = 0
    gap_s: float = 0.0
    refused_s: float = 0.0
    """From the first to the last short completion that failed."""
    full_s: float = 0.0
    """Until every engine and gateway was ready again; 0 if the fleet ended."""
    ready: list[str] = field(default_factory=list)
    """What /health/ready answered, each time that it changed."""
    status: str = ""
    """What `qwenfleet status` printed right after the strike, without its tables."""
    log: list[str] = field(default_factory=list)
    """What `serve` printed since."""


class Observer:
    """Probes a fleet several times a second."""

    def __init__(self, fleet: Any, part: str, model: str) -> None:
        self.seen = Observation(part)
        self._fleet = fleet
        self._model = model
        self._faults: list[tuple[float, float]] = []
        """Begin and end of each short completion that failed."""
        self._log_begins = len(fleet.log.read_text())
        self._over = threading.Event()
        self._struck_at = 0.0

    @contextmanager
    def watching(self) -> Iterator[Observation]:
        """Probe until the end of the block; then the observation is complete."""
        probes = [threading.Thread(target=run) for run in (self._ask, self._ask_ready)]
        for probe in probes:
            probe.start()
        self._struck_at = time.monotonic()
        try:
            yield self.seen
        finally:
            self._over.set()
            for probe in probes:
                probe.join()
            self.seen.log = self._fleet.log.read_text()[self._log_begins :].splitlines()
            if self._faults:
                self.seen.refused_s = self._faults[-1][1] - self._faults[0][0]

    def note_status(self) -> str:
        """Run `qwenfleet status` now; returns all that it printed."""
        answer = self._fleet.cli("status")
        text: str = answer.stdout + answer.stderr
        self.seen.status = "; ".join(line for line in text.splitlines() if _is_sentence(line))
        return text

    def expect_full_service(self, gateways: int, engines: int) -> None:
        """Wait until everything is ready, after the strike at the latest."""
        give_up_at = time.monotonic() + FULL_S
        while not self._is_full(gateways, engines):
            assert time.monotonic() < give_up_at, f"{self.seen.part}: no full service"
            time.sleep(1)
        self.seen.full_s = time.monotonic() - self._struck_at

    def _is_full(self, gateways: int, engines: int) -> bool:
        status = self._fleet.status()
        ready = [engine for engine in status["engines"] if engine["state"] == "ready"]
        serving = [gateway for gateway in status["gateways"] if gateway["ready"]]
        return len(ready) == engines and len(serving) == gateways

    def _ask(self) -> None:
        """Send short completions, one after the other."""
        body = {"model": self._model, "prompt": "def", "max_tokens": 1}
        while not self._over.wait(PROBE_S):
            began_at = time.monotonic()
            try:
                url = f"{self._fleet.url}/v1/completions"
                is_good = httpx.post(url, json=body, timeout=60).status_code == 200
            except httpx.HTTPError:
                is_good = False
            if not is_good:
                self._faults.append((began_at, time.monotonic()))

    def _ask_ready(self) -> None:
        while not self._over.wait(PROBE_S):
            try:
                response = httpx.get(f"{self._fleet.url}/health/ready", timeout=10)
                answer = str(response.status_code)
                if response.status_code != 200:
                    answer += f" {_code(response)}"
            except httpx.HTTPError as error:
                answer = type(error).__name__
            if self.seen.ready[-1:] != [answer]:
                self.seen.ready.append(answer)


def _code(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "(not ours)"


def _is_sentence(line: str) -> bool:
    """Whether a line of `status` is not part of a table."""
    return ": " in line or line.startswith("qwenfleet:")


def table(seen: list[Observation]) -> str:
    """Render the observations as a Markdown table."""
    rows = [
        "| killed | streams lost, changed | longest gap, s | requests failed for, s "
        "| full service after, s | `/health/ready` | `status` | `serve` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in seen:
        log = "; ".join(line.partition("] ")[2] or line for line in one.log)
        full = f"{one.full_s:.0f}" if one.full_s else "-"
        rows.append(
            f"| {one.part} | {one.lost}, {one.changed} | {one.gap_s:.1f} | {one.refused_s:.1f} "
            f"| {full} | {', '.join(one.ready)} | {one.status} | {log} |"
        )
    return "\n".join(rows)
