"""`python -m qwenfleet.deployments fleet.yaml`: a fleet onto the Ray cluster around this process.

Made for `ray job submit`: the job ends when all engines are ready, and the fleet stays. Run again,
it changes what the file changed; `--stop` removes the fleet.
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
"""A 480B model loads in minutes from a local disk, and in most of an hour from the Hub."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The result is the exit status; a failure is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        config = load.load(options.config)
        from qwenfleet.deployments.operations import deploy

        if options.stop:
            deploy.stop(config)
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
        description="Deploy a fleet on the Ray cluster that this runs in, and wait until its "
        "engines are ready.",
    )
    parser.add_argument("config", metavar="FILE", help="the fleet, as YAML")
    parser.add_argument("--stop", action="store_true", help="remove the fleet instead")
    parser.add_argument(
        "--timeout",
        type=float,
        default=START_TIMEOUT_S,
        metavar="SECONDS",
        help="give up waiting after this, and leave the fleet to go on (default 3600)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
