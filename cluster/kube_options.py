"""Options of the commands that ask Kubernetes; apart from them, so that others start without it."""

from __future__ import annotations

import argparse
from typing import TypeAlias

from qwenfleet.cluster.errors import ConfigError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_status(commands: Commands) -> argparse.ArgumentParser:
    """Add `status` to the command line; the caller sets what it runs."""
    parser = commands.add_parser(
        "status",
        help="show the fleet that runs on this machine, or in Kubernetes",
        description="Show the fleet that runs on this machine, or with --kube what the Kubernetes "
        "API says of one: RayServices and their upgrades, pods, nodes, GPUs and events.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--port", type=int, help="the fleet at this port, when several run")
    kube = parser.add_argument_group("Kubernetes")
    kube.add_argument("--kube", action="store_true", help="ask the Kubernetes API")
    kube.add_argument("--watch", action="store_true", help="again on each change, until Ctrl-C")
    _add_place(kube)
    return parser


def add_drain(parser: argparse.ArgumentParser) -> None:
    """What `drain` takes: an engine, or a Kubernetes node."""
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("engine", metavar="ENGINE", nargs="?", help="its id, or the start of it")
    target.add_argument(
        "--node",
        help="every engine that has a part on this Kubernetes node, which is cordoned then",
    )
    kube = parser.add_argument_group("Kubernetes, with --node")
    _add_place(kube)
    kube.add_argument(
        "--address",
        help="of the fleet's Ray cluster, where this runs on a node of it; left out, the command "
        "goes through the Kubernetes API into the head's pod",
    )


def check_status(options: argparse.Namespace) -> None:
    """Raises ConfigError when an option is of no effect."""
    for name in () if options.kube else ("watch", "namespace", "context"):
        _refuse(options, name, "--kube", "Add --kube.")
    if options.kube:
        _refuse(options, "port", "--kube", "Leave it out, or leave out --kube.", beside=True)


def check_drain(options: argparse.Namespace) -> None:
    """Raises ConfigError when an option is of no effect."""
    for name in () if options.node is not None else ("namespace", "context", "address"):
        _refuse(options, name, "--node", "Add --node, or name the fleet's --port.")
    if options.node is not None:
        _refuse(options, "port", "--node", "Leave it out: pods are named by --node.", beside=True)


def _refuse(
    options: argparse.Namespace, name: str, other: str, remedy: str, *, beside: bool = False
) -> None:
    if getattr(options, name) not in (None, False):
        where = "beside" if beside else "without"
        raise ConfigError(f"--{name} is given {where} {other}", remedy)


def _add_place(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--namespace", "-n", help="the fleet's (default: the context's)")
    group.add_argument("--context", help="of the kubeconfig (default: the current one)")
