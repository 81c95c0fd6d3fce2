"""`qwenfleet drain`: move the streams of an engine, or of a Kubernetes node, to other engines."""

from __future__ import annotations

import argparse
import math
from functools import partial

from qwenfleet.cli.options import Commands, add_place, refuse


def add(commands: Commands) -> None:
    """Add `drain` to the command line."""
    parser = commands.add_parser(
        "drain", help="move an engine's streams to others, then replace the engine"
    )
    _add_target(parser)
    parser.add_argument(
        "--deadline",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="seconds to wait for streams to move; the rest are interrupted and resume when an "
        "engine has room (default 60)",
    )
    parser.add_argument(
        "--force", action="store_true", help="drain even the last engine of a model"
    )
    parser.add_argument("--port", type=int, help="the fleet at this port, if several run")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Drain an engine or a node. Raises FleetError."""
    check(options)
    say = partial(print, flush=True)
    if options.node is not None:
        from qwenfleet.deployments.operations import drain_node

        drain_node.run(options, say)
        return
    from qwenfleet.deployments.operations import attach, drain

    drain.drain(
        attach.find(options.port),
        options.engine,
        deadline_s=options.deadline,
        is_forced=options.force,
        say=say,
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "engine", metavar="ENGINE", nargs="?", help="id of the engine, or its first characters"
    )
    target.add_argument(
        "--node",
        help="drain every engine that has a part on this Kubernetes node, then cordon the node",
    )
    kube = parser.add_argument_group("Kubernetes, with --node")
    add_place(kube)
    kube.add_argument(
        "--address",
        help="address of the fleet's Ray cluster, if this runs on one of its nodes (default: run "
        "in the head's pod through the Kubernetes API)",
    )


def check(options: argparse.Namespace) -> None:
    """Raises ConfigError if an option has no effect."""
    for name in () if options.node is not None else ("namespace", "context", "address"):
        refuse(options, name, "--node", "Add --node, or use --port to choose a fleet.")
    if options.node is not None:
        remedy = "Remove it: --node already selects the engines."
        refuse(options, "port", "--node", remedy, conflicts=True)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
