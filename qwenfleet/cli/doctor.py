"""`qwenfleet doctor`: problems and surprises on this machine, or on each node of a cluster."""

from __future__ import annotations

import argparse
import json

from qwenfleet.cli.options import Commands


def add(commands: Commands) -> None:
    """Add `doctor` to the command line."""
    doctor = commands.add_parser(
        "doctor",
        help="find problems and surprises on this machine, and how to fix them",
        description="Report problems and surprises on this machine, or with --port or --address on "
        "every node of a cluster, and how to fix them. The exit status is 1 if there is a problem, "
        "which is something that stops or breaks `serve`, and 0 otherwise.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--verbose", action="store_true", help="also list checks that are ok")
    places = doctor.add_mutually_exclusive_group()
    places.add_argument(
        "--address",
        help="examine the Ray cluster at this address, of which this machine must be a node; "
        "`auto` finds the one that runs here",
    )
    places.add_argument("--port", type=int, help="examine the cluster of the fleet at this port")
    doctor.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; the exit status is 1 if one of them is a problem."""
    from qwenfleet.cluster.doctor import finding

    if options.port is None and options.address is None:
        from qwenfleet.cluster.doctor import examination

        findings = examination.judge(examination.gather())
    else:
        from qwenfleet.deployments.operations import checkup

        findings = checkup.run(options.port, options.address)
    if options.json:
        print(json.dumps(finding.as_json(findings), indent=2))
    else:
        print(finding.text(findings, is_verbose=options.verbose))
    return 1 if finding.problems(findings) else 0
