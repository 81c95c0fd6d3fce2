"""Live numbers of a fleet: a full screen until a signal, or printed once."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from qwenfleet.cluster.live.history import REPORT_S
from qwenfleet.cluster.live.reading import Reader, Reading
from qwenfleet.cluster.live.table import FleetTable, Notice
from qwenfleet.cluster.local.fleets import RunningFleet

PATIENCE_S: Final = 2.5 * REPORT_S
"""Seconds that `--once` waits for second reports."""
PLAIN_COLUMNS: Final = 200
"""Width of an output that is not a terminal, so that nothing is cut or folded."""

Find = Callable[[int | None, str | None], RunningFleet]
"""Finds the fleet on this machine by port or by name. Raises FleetNotFound."""
Notices = Callable[[], Sequence[Notice]]


def live(reader: Reader, reading: Reading, notices: Notices, *, interval_s: float) -> None:
    """Draw the numbers repeatedly; never returns."""
    with Live(screen=True, auto_refresh=False, console=Console()) as screen:
        while True:
            screen.update(_table(reading, notices), refresh=True)
            draw_at = time.monotonic() + interval_s
            while (left_s := draw_at - time.monotonic()) > 0:
                time.sleep(min(left_s, REPORT_S))
                reading = reader.read(time.monotonic, time.time)


def once(
    reader: Reader, reading: Reading, notices: Notices, *, interval_s: float, as_json: bool
) -> None:
    """Print the numbers as soon as all are known. Raises FleetError if there are none."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not reading.is_complete and (left_s := give_up_at - time.monotonic()) > 0:
        time.sleep(min(interval_s, left_s, REPORT_S))
        reading = reader.read(time.monotonic, time.time)
    if reading.view is None:
        raise reading.problems[0]
    if as_json:
        print(json.dumps(tree(reading), indent=2))
    else:
        width = None if sys.stdout.isatty() else PLAIN_COLUMNS
        Console(width=width).print(_table(reading, notices))


def tree(reading: Reading) -> dict[str, Any]:
    """A reading as `--json` prints it."""
    numbers = {} if reading.view is None else asdict(reading.view)
    return {"title": reading.title, **numbers, "problems": [str(p) for p in reading.problems]}


def _table(reading: Reading, notices: Notices) -> FleetTable:
    problems = [Notice(str(problem), is_bad=True) for problem in reading.problems]
    if reading.view is None:
        problems.append(Notice("no data now; retrying", is_bad=False))
    head = f"{reading.title}  {time.strftime('%H:%M:%S')}"
    return FleetTable(reading.view, head, [*notices(), *problems])


@contextmanager
def ending_quietly() -> Iterator[None]:
    """End the block without a stack trace on Ctrl-C, `kill` and a closed terminal, so that the
    screen is restored."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
