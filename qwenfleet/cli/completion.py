"""`qwenfleet completion`: a shell's completion script, generated from the command-line parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

from qwenfleet.cli.options import Commands

SHELLS: Final = ("bash", "zsh", "tcsh", "fish")
"""Shells that shtab supports."""


def add(commands: Commands, parser: argparse.ArgumentParser) -> None:
    """Add `completion` to the command line of `parser`."""
    shell = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        description='Print the completion script of a shell. For bash: eval "$(qwenfleet '
        'completion bash)", also as a line of ~/.bashrc.',
    )
    shell.add_argument("shell", choices=SHELLS)
    shell.set_defaults(command=lambda options: print(script(parser, options.shell)))


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script with which `shell` completes subcommands, options, choices and paths."""
    import shtab  # here, so that other commands do not load it

    for action in _actions(parser):
        if action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own protocol
        elif action.metavar == "DIRECTORY":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
