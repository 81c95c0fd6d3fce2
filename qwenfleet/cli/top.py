"""`qwenfleet top`: live numbers of a fleet, once or until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from qwenfleet.cli.options import Commands, add_fleet
from qwenfleet.cluster.errors import ConfigError
from qwenfleet.cluster.local.fleets import RunningFleet

if TYPE_CHECKING:
    from qwenfleet.cluster.live.reading import Place
    from qwenfleet.cluster.live.screen import Find, Notices


def add(commands: Commands) -> None:
    """Add `top` to the command line."""
    parser = commands.add_parser(
        "top",
        help="show live numbers of a fleet, without Prometheus",
        description="Show engines, streams, tokens, latencies and errors of the last minute, from "
        "the addresses that Prometheus would scrape, until Ctrl-C, or once if the output is not a "
        "terminal. The fleet's processes report every 10 s.",
    )
    add_fleet(parser)
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="read this metrics address instead of the fleet on this machine; repeat it for each "
        "node",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print one table when every process has reported twice, then exit",
    )
    parser.add_argument("--json", action="store_true", help="like --once, as JSON")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Show the fleet that the options select."""
    from qwenfleet.deployments.operations import attach

    return show(options, attach.find)


def show(options: argparse.Namespace, find: Find, notices: Notices = tuple) -> int:
    """Show until Ctrl-C, or once. Raises FleetError if the first reading fails."""
    from qwenfleet.cluster.live import screen
    from qwenfleet.cluster.live.reading import Reader

    reader = Reader(_place(options, find), options.fleet)
    reading = reader.read(time.monotonic, time.time)
    # a fleet on this machine that is still starting: its agent answers, but no process reports yet
    may_be_starting = reading.is_silent and not options.url
    if reading.view is None and not may_be_starting:
        raise reading.problems[0]
    if options.json or options.once or not sys.stdout.isatty():
        screen.once(reader, reading, notices, interval_s=options.interval, as_json=options.json)
    else:
        with screen.ending_quietly():
            screen.live(reader, reading, notices, interval_s=options.interval)
    return 0


def local(running: RunningFleet) -> Place:
    """The place of the metrics of a fleet on this machine."""
    from qwenfleet.cluster.live.reading import Place

    return Place(
        title=f"{running.name} at {running.url}",
        urls=(f"http://127.0.0.1:{running.metrics_port}/metrics",),
        models=tuple(running.models),
    )


def _place(options: argparse.Namespace, find: Find) -> Callable[[], Place]:
    from qwenfleet.cluster.live import address
    from qwenfleet.cluster.live.reading import Place

    if options.url:
        if options.port is not None:
            raise ConfigError("--port cannot be used with --url", "Remove one of them.")
        urls = tuple(dict.fromkeys(address.checked(url) for url in options.url))
        more = f" and {len(urls) - 1} more" * (len(urls) > 1)
        return lambda: Place(f"{options.fleet or 'fleet'} at {urls[0]}{more}", urls)
    return lambda: local(find(options.port, options.fleet))
