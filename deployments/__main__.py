"""`python -m qwenfleet.deployments fleet.yaml`: deploys a fleet on this process's Ray cluster.

Made for `ray job submit`: the job ends when all engines are ready, and the fleet keeps running. A
second run applies the changes of the file; `--stop` removes the fleet.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from qwenfleet.cluster.config import load
from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.planner.fleet_checks import check_fleet

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 3600.0
"""A 480B model loads in minutes from a local disk, and takes up to an hour from the Hub."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status; a failure prints one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        config = load.load(options.config)
        from qwenfleet.deployments.operations import deploy

        if options.stop:
            deploy.stop(config, timeout_s=options.timeout)
        else:
            for sentence in check_fleet(config):
                logger.warning("configuration: %s", sentence)
            deploy.deploy(config, options.config, timeout_s=options.timeout)
    except FleetError as error:
        print(f"qwenfleet: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qwenfleet.deployments",
        description="Deploy a fleet on the current Ray cluster and wait until its engines are "
        "ready.",
    )
    parser.add_argument("config", metavar="FILE", help="the fleet's YAML file")
    parser.add_argument("--stop", action="store_true", help="remove the fleet instead")
    parser.add_argument(
        "--timeout",
        type=float,
        default=START_TIMEOUT_S,
        metavar="SECONDS",
        help="stop waiting after this; the fleet keeps starting or ending (default 3600)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
