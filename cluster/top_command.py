"""`qwenfleet top`: a fleet's live numbers in a terminal, without Prometheus."""

from __future__ import annotations

import argparse
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

from qwenfleet.cluster import metrics_address
from qwenfleet.cluster.errors import ConfigError
from qwenfleet.cluster.report_history import REPORT_S
from qwenfleet.cluster.run_file import RunningFleet
from qwenfleet.cluster.top_reading import Place, Reader, Reading
from qwenfleet.cluster.top_table import FleetTable, Remark

PATIENCE_S: Final = 2.5 * REPORT_S
"""How long `--once` waits for second reports."""
PLAIN_COLUMNS: Final = 200
"""Of an output that is no terminal: nothing is cut or folded there."""

Find = Callable[[int | None, str | None], RunningFleet]
"""The fleet of this machine at a port, or of a name. Raises FleetNotFound."""
Remarks = Callable[[], Sequence[Remark]]


def run(options: argparse.Namespace, find: Find, remarks: Remarks = tuple) -> int:
    """Until Ctrl-C, or once. Raises FleetError when nothing can be read at the start."""
    reader = Reader(_place(options, find), options.fleet)
    reading = reader.read(time.monotonic, time.time)
    if reading.view is None and not _may_come(options, reading):
        raise reading.problems[0]
    if options.json or options.once or not sys.stdout.isatty():
        return _once(options, reader, reading, remarks)
    with ending_quietly():
        _live(options, reader, reading, remarks)
    return 0


def local(fleet: RunningFleet) -> Place:
    return Place(
        title=f"{fleet.name} at {fleet.url}",
        urls=(f"http://127.0.0.1:{fleet.metrics_port}/metrics",),
        models=tuple(fleet.models),
    )


def _place(options: argparse.Namespace, find: Find) -> Callable[[], Place]:
    if options.url:
        if options.port is not None:
            raise ConfigError("--port is given beside --url", "Leave one of them out.")
        urls = tuple(dict.fromkeys(metrics_address.checked(url) for url in options.url))
        more = f" and {len(urls) - 1} more" * (len(urls) > 1)
        return lambda: Place(f"{options.fleet or 'fleet'} at {urls[0]}{more}", urls)
    return lambda: local(find(options.port, options.fleet))


def _may_come(options: argparse.Namespace, reading: Reading) -> bool:
    """A fleet of this machine that runs but starts yet; its agent answers, without anything."""
    return not options.url and any("has no metrics" in str(p) for p in reading.problems)


def _live(options: argparse.Namespace, reader: Reader, reading: Reading, remarks: Remarks) -> None:
    with Live(screen=True, auto_refresh=False, console=Console()) as screen:
        while True:
            screen.update(_table(reading, remarks), refresh=True)
            draw_at = time.monotonic() + options.interval
            while (left_s := draw_at - time.monotonic()) > 0:
                time.sleep(min(left_s, REPORT_S))
                reading = reader.read(time.monotonic, time.time)


def _once(options: argparse.Namespace, reader: Reader, reading: Reading, remarks: Remarks) -> int:
    give_up_at = time.monotonic() + PATIENCE_S
    while not reading.is_complete and (left_s := give_up_at - time.monotonic()) > 0:
        time.sleep(min(options.interval, left_s, REPORT_S))
        reading = reader.read(time.monotonic, time.time)
    if reading.view is None:
        raise reading.problems[0]
    if options.json:
        print(json.dumps(as_json(reading), indent=2))
    else:
        width = None if sys.stdout.isatty() else PLAIN_COLUMNS
        Console(width=width).print(_table(reading, remarks))
    return 0


def as_json(reading: Reading) -> dict[str, Any]:
    tree = {} if reading.view is None else asdict(reading.view)
    return {"title": reading.title, **tree, "problems": [str(p) for p in reading.problems]}


def _table(reading: Reading, remarks: Remarks) -> FleetTable:
    problems = [Remark(str(problem), is_bad=True) for problem in reading.problems]
    if reading.view is None:
        problems.append(Remark("nothing is known now; asking again", is_bad=False))
    head = f"{reading.title}  {time.strftime('%H:%M:%S')}"
    return FleetTable(reading.view, head, [*remarks(), *problems])


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Ctrl-C is how this ends; `kill` and a closed terminal put the screen back likewise."""

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
