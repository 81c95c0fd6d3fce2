"""The entry point of the `qwenfleet` command: its subcommands, and how each failure is printed."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwenfleet.cli import (
    doctor,
    keys,
    plan_options,
    serve,
    top,
    watch,
)
from qwenfleet.cli import (
    drain as kube_options,
)
from qwenfleet.cli import (
    status as kube_command,
)
from qwenfleet.cli.options import Commands
from qwenfleet.cluster.errors import FleetError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit status, and a failure is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        return command(options) or 0
    except FleetError as error:
        print(f"qwenfleet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has left, as in `qwenfleet status | head`; the interpreter's own flush must not
        # complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"qwenfleet: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwenfleet", description="Serve the Qwen3-Coder family over a Ray cluster."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve.add(commands)
    kube_command.add_status(commands).set_defaults(command=_status)
    top.add_top(commands).set_defaults(command=_top)
    watch.add_watch(commands).set_defaults(command=_watch)
    _add_drain(commands)
    doctor.add(commands)
    plan_options.add(commands).set_defaults(command=_plan)
    keys.add(commands)
    return parser


def _add_drain(commands: Commands) -> None:
    drain = commands.add_parser(
        "drain", help="move an engine's streams to others, then replace the engine"
    )
    kube_options.add_drain(drain)
    drain.add_argument(
        "--deadline",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long streams have to leave before they are cut, and go on when they find an "
        "engine (default 60)",
    )
    drain.add_argument("--force", action="store_true", help="even the last engine of its model")
    drain.add_argument("--port", type=int, help="of the fleet at this port, when several run")
    drain.set_defaults(command=_drain)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _status(options: argparse.Namespace) -> None:
    kube_command.check_status(options)
    if options.kube:
        kube_command.run(options)
        return
    from qwenfleet.deployments import attach, status

    answer = status.read(attach.find(options.port))
    print(json.dumps(answer.as_json(), indent=2) if options.json else status.table(answer))


def _top(options: argparse.Namespace) -> int:
    from qwenfleet.deployments import attach

    return top.run(options, attach.find)


def _watch(options: argparse.Namespace) -> int:
    from qwenfleet.deployments import attach

    return watch.run(options, attach.find)


def _drain(options: argparse.Namespace) -> None:
    kube_options.check_drain(options)
    if options.node is not None:
        from qwenfleet.deployments import node_drain

        node_drain.run(options, lambda text: print(text, flush=True))
        return
    from qwenfleet.deployments import attach, drain

    drain.drain(
        attach.find(options.port),
        options.engine,
        deadline_s=options.deadline,
        is_forced=options.force,
        say=lambda text: print(text, flush=True),
    )


def _plan(options: argparse.Namespace) -> int:
    from qwenfleet.cli import plan

    return plan.run(options, _ray_nodes)


def _ray_nodes(address: str) -> list[Mapping[str, Any]]:
    from qwenfleet.deployments import attach

    with attach.cluster(None, address):
        import ray

        nodes: list[Mapping[str, Any]] = ray.nodes()
        return nodes


if __name__ == "__main__":
    sys.exit(main())
