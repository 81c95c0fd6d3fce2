"""Options of `top` and `watch`; apart from them, so that other commands start without rich."""

from __future__ import annotations

import argparse
import math
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

LEAST_INTERVAL_S = 0.2


def add_top(commands: Commands) -> argparse.ArgumentParser:
    """Add `top` to the command line; the caller sets what it runs."""
    parser = commands.add_parser(
        "top",
        help="live numbers of a fleet, without Prometheus",
        description="Show engines, streams, tokens, latencies and errors of the last minute, from "
        "the addresses that Prometheus would scrape, until Ctrl-C; where the output is no "
        "terminal, once. The fleet's processes report every 10 s.",
    )
    _add_fleet(parser)
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="read this metrics address, not the fleet of this machine; give it once for each node",
    )
    parser.add_argument(
        "--once", action="store_true", help="one table, as soon as every process reported twice"
    )
    parser.add_argument("--json", action="store_true", help="likewise, as JSON")
    return parser


def add_watch(commands: Commands) -> argparse.ArgumentParser:
    """Likewise `watch`."""
    parser = commands.add_parser(
        "watch",
        help="run Prometheus with the alerts beside the fleet of this machine, and top",
        description="Start Prometheus on 127.0.0.1 with the chart's recording rules and alerts, "
        "let it scrape the fleet that runs here, and show `top` until Ctrl-C ends both. Where the "
        "output is no terminal, problems and alerts are lines.",
    )
    _add_fleet(parser)
    parser.add_argument(
        "--prometheus", metavar="PATH", default="prometheus", help="the program (default: of PATH)"
    )
    parser.add_argument(
        "--listen",
        type=int,
        metavar="PORT",
        default=9090,
        help="port of Prometheus itself (default 9090)",
    )
    parser.add_argument(
        "--retention",
        default="2h",
        metavar="TIME",
        help="how long it keeps data, such as 2h or 7d (default 2h)",
    )
    return parser


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fleet", metavar="NAME", help="show the fleet of this name, when several report"
    )
    parser.add_argument(
        "--port", type=int, help="show the fleet that answers at this port, when several run here"
    )
    parser.add_argument(
        "--interval",
        type=_interval,
        default=2.0,
        metavar="SECONDS",
        help="time between two pictures (default 2); the metrics are read every 10 s at least",
    )


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not LEAST_INTERVAL_S <= seconds <= 3600:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {LEAST_INTERVAL_S} to 3600"
        )
    return seconds
