"""`qwenfleet status`: the fleet on this machine, or with --kube a fleet in Kubernetes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from qwenfleet.cli.options import Commands, add_place, refuse
from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.kube import table
from qwenfleet.cluster.kube.client import Kube, connect
from qwenfleet.cluster.kube.status import KubeStatus, read

INTERVAL_S: Final = 2.0
CLEAR: Final = "\x1b[H\x1b[2J"


def add(commands: Commands) -> None:
    """Add `status` to the command line."""
    parser = commands.add_parser(
        "status",
        help="show the fleet that runs on this machine, or in Kubernetes",
        description="Show the fleet that runs on this machine, or with --kube one in Kubernetes as "
        "the API reports it: RayServices and their upgrades, pods, nodes, GPUs and events. "
        "The exit status is 1 if no fleet is found or if a part of it does not answer.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--port", type=int, help="the fleet at this port, if several run")
    group = parser.add_argument_group("Kubernetes")
    group.add_argument(
        "--kube", action="store_true", help="show a fleet in Kubernetes, through its API"
    )
    group.add_argument(
        "--watch", action="store_true", help="print again after each change, until Ctrl-C"
    )
    add_place(group)
    parser.set_defaults(command=run)


def check(options: argparse.Namespace) -> None:
    """Raises ConfigError if an option has no effect."""
    for name in () if options.kube else ("watch", "namespace", "context"):
        refuse(options, name, "--kube", "Add --kube.")
    if options.kube:
        refuse(options, "port", "--kube", "Remove one of them.", conflicts=True)


def run(options: argparse.Namespace) -> int:
    """Show a fleet; returns 1 if a part of it did not answer. Raises FleetError."""
    check(options)
    if options.kube:
        _show_kubernetes(options)
        return 0
    from qwenfleet.deployments.operations import attach, inquiry, status

    answer = inquiry.read(attach.find(options.port))
    print(
        json.dumps(answer.as_json(), indent=2) if options.json else status.table(answer), flush=True
    )
    return 0 if answer.is_complete else 1


def _show_kubernetes(options: argparse.Namespace) -> None:
    client = connect(options.context, options.namespace)
    if options.watch:
        is_terminal = sys.stdout.isatty() and not options.json
        say = partial(print, flush=True)
        watch(client, as_json=options.json, say=say, is_terminal=is_terminal)
    else:
        print(_text(read(client), options.json, indent=2))


def watch(
    client: Kube,
    *,
    as_json: bool,
    say: Callable[[str], None],
    is_terminal: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Print the status whenever it changes; as JSON one line each. Never returns.

    Every round asks the API server. If it stops answering, the output says so, with the age of the
    last status. Raises KubernetesError if the first request fails.
    """
    shown, seen_at = "", None
    while True:
        try:
            text = news = _text(read(client), as_json, indent=None)
            seen_at = clock()
        except KubernetesError as error:
            if seen_at is None:
                raise
            news = str(error)  # a higher age alone is not news
            text = _stale(news, clock() - seen_at, as_json)
        if is_terminal or news != shown:
            say(CLEAR + text if is_terminal else text)
            shown = news
        sleep(INTERVAL_S)


def _stale(error: str, age_s: float, as_json: bool) -> str:
    if as_json:
        return json.dumps({"error": error, "age_s": round(age_s, 1)})
    return f"the last status is {age_s:.0f} s old: {error}"


def _text(found: KubeStatus, as_json: bool, indent: int | None) -> str:
    return json.dumps(found.as_json(), indent=indent) if as_json else table.table(found)
