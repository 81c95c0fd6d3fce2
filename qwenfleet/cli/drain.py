"""Options of `qwenfleet drain`: an engine, or a Kubernetes node."""

from __future__ import annotations

import argparse

from qwenfleet.cli.options import add_place, refuse


def add_drain(parser: argparse.ArgumentParser) -> None:
    """What `drain` takes: an engine, or a Kubernetes node."""
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("engine", metavar="ENGINE", nargs="?", help="its id, or the start of it")
    target.add_argument(
        "--node",
        help="every engine that has a part on this Kubernetes node, which is cordoned then",
    )
    kube = parser.add_argument_group("Kubernetes, with --node")
    add_place(kube)
    kube.add_argument(
        "--address",
        help="of the fleet's Ray cluster, where this runs on a node of it; left out, the command "
        "goes through the Kubernetes API into the head's pod",
    )


def check_drain(options: argparse.Namespace) -> None:
    """Raises ConfigError when an option is of no effect."""
    for name in () if options.node is not None else ("namespace", "context", "address"):
        refuse(options, name, "--node", "Add --node, or name the fleet's --port.")
    if options.node is not None:
        refuse(options, "port", "--node", "Leave it out: pods are named by --node.", beside=True)
