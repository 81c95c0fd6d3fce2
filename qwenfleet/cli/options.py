"""Options that several commands share, and how an option without effect is refused."""

from __future__ import annotations

import argparse
import math
from typing import TypeAlias

from qwenfleet.cluster.errors import ConfigError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

LEAST_INTERVAL_S = 0.2


def add_place(group: argparse._ArgumentGroup) -> None:
    """Add the namespace and the context of a command that asks Kubernetes."""
    group.add_argument("--namespace", "-n", help="the fleet's (default: the context's)")
    group.add_argument("--context", help="of the kubeconfig (default: the current one)")


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Add which fleet `top` and `watch` show, and how often."""
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


def refuse(
    options: argparse.Namespace, name: str, other: str, remedy: str, *, beside: bool = False
) -> None:
    """Raises ConfigError when option `name` is given without `other`, or with it (`beside`)."""
    if getattr(options, name) not in (None, False):
        where = "beside" if beside else "without"
        raise ConfigError(f"--{name} is given {where} {other}", remedy)


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
