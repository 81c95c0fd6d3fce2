"""`qwenfleet status`: its options, and with --kube what Kubernetes knows, once or until Ctrl-C."""

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
from qwenfleet.cluster.kube import client as kube
from qwenfleet.cluster.kube import status as kube_status
from qwenfleet.cluster.kube import table
from qwenfleet.cluster.kube.client import Kube
from qwenfleet.cluster.kube.status import KubeStatus

INTERVAL_S: Final = 2.0
CLEAR: Final = "\x1b[H\x1b[2J"


def add(commands: Commands) -> None:
    """Add `status` to the command line."""
    parser = commands.add_parser(
        "status",
        help="show the fleet that runs on this machine, or in Kubernetes",
        description="Show the fleet that runs on this machine, or with --kube what the Kubernetes "
        "API says of one: RayServices and their upgrades, pods, nodes, GPUs and events.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--port", type=int, help="the fleet at this port, when several run")
    group = parser.add_argument_group("Kubernetes")
    group.add_argument("--kube", action="store_true", help="ask the Kubernetes API")
    group.add_argument("--watch", action="store_true", help="again on each change, until Ctrl-C")
    add_place(group)
    parser.set_defaults(command=run)


def check(options: argparse.Namespace) -> None:
    """Raises ConfigError when an option is of no effect."""
    for name in () if options.kube else ("watch", "namespace", "context"):
        refuse(options, name, "--kube", "Add --kube.")
    if options.kube:
        refuse(options, "port", "--kube", "Leave it out, or leave out --kube.", beside=True)


def run(options: argparse.Namespace) -> None:
    """Show a fleet. Raises FleetError."""
    check(options)
    if options.kube:
        _show_kubernetes(options)
        return
    from qwenfleet.deployments.operations import attach, status

    answer = status.read(attach.find(options.port))
    print(json.dumps(answer.as_json(), indent=2) if options.json else status.table(answer))


def _show_kubernetes(options: argparse.Namespace) -> None:
    client = kube.connect(options.context, options.namespace)
    if options.watch:
        is_terminal = sys.stdout.isatty() and not options.json
        say = partial(print, flush=True)
        watch(client, as_json=options.json, say=say, is_terminal=is_terminal)
    else:
        print(_text(kube_status.read(client), options.json, indent=2))


def watch(
    client: Kube,
    *,
    as_json: bool,
    say: Callable[[str], None],
    is_terminal: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Say the status whenever it has changed, in JSON as one line each; never returns.

    It is asked for anew each time, so that what is shown is never older than its last line says:
    an API server that stops answering is said, with the age of what was seen last. Raises
    KubernetesError when the first answer fails.
    """
    said, seen_at = "", None
    while True:
        try:
            text = news = _text(kube_status.read(client), as_json, indent=None)
            seen_at = clock()
        except KubernetesError as error:
            if seen_at is None:
                raise
            news = str(error)  # its age alone is none
            text = _stale(news, clock() - seen_at, as_json)
        if is_terminal or news != said:
            say(CLEAR + text if is_terminal else text)
            said = news
        sleep(INTERVAL_S)


def _stale(said: str, age_s: float, as_json: bool) -> str:
    if as_json:
        return json.dumps({"error": said, "age_s": round(age_s, 1)})
    return f"what was shown before is {age_s:.0f} s old: {said}"


def _text(found: KubeStatus, as_json: bool, indent: int | None) -> str:
    return json.dumps(found.as_json(), indent=indent) if as_json else table.table(found)
