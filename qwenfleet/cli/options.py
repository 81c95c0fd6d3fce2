"""Options that several commands share, and the refusal of options without effect."""

from __future__ import annotations

import argparse
import math
from typing import TypeAlias

from qwenfleet.cluster.errors import ConfigError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

LEAST_INTERVAL_S = 0.2


def add_place(group: argparse._ArgumentGroup) -> None:
    """Add the namespace and the context, for commands that use Kubernetes."""
    group.add_argument(
        "--namespace", "-n", help="namespace of the fleet (default: that of the context)"
    )
    group.add_argument("--context", help="context of the kubeconfig (default: the current one)")


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the fleet that `top` and `watch` show, and the interval."""
    parser.add_argument(
        "--fleet", metavar="NAME", help="show the fleet with this name, if several report"
    )
    parser.add_argument(
        "--port", type=int, help="show the fleet at this port, if several run on this machine"
    )
    parser.add_argument(
        "--interval",
        type=_interval,
        default=2.0,
        metavar="SECONDS",
        help="seconds between screen updates (default 2); metrics are read at least every 10 s",
    )


def refuse(
    options: argparse.Namespace, name: str, other: str, remedy: str, *, conflicts: bool = False
) -> None:
    """Raises ConfigError if option `name` is set, although it needs `other`, or `conflicts`."""
    if getattr(options, name) not in (None, False):
        problem = "cannot be used with" if conflicts else "has no effect without"
        raise ConfigError(f"--{name} {problem} {other}", remedy)


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
