"""Entry point of the `qwenfleet` command: its subcommands, and the printing of failures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from qwenfleet.cli import completion, doctor, drain, keys, plan_options, serve, status, top, watch
from qwenfleet.cluster.errors import FleetError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; print a failure as one sentence on stderr."""
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
        # the reader closed the pipe, as in `qwenfleet status | head`: the interpreter's own flush
        # at exit must not fail on it
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
    parser.add_argument("--version", action=_Version, help="print name and version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (serve, status, top, watch, drain, doctor, plan_options, keys):
        command.add(commands)
    completion.add(commands, parser)
    return parser


class _Version(argparse.Action):
    """Prints the version, which is read only on request."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from qwenfleet.cluster.local import version

        print(f"{parser.prog} {version.own_version()}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
