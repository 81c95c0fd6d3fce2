"""`qwenfleet serve`: runs a fleet on this machine until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import time

from qwenfleet.cli.options import Commands
from qwenfleet.cluster.config import load
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.local import fleets


def add(commands: Commands) -> None:
    """Add `serve` to the command line."""
    serve = commands.add_parser("serve", help="run a fleet on this machine until Ctrl-C")
    models = serve.add_mutually_exclusive_group()
    models.add_argument("--config", metavar="FILE", help="YAML file with the fleet")
    models.add_argument(
        "--model", metavar="ID", help="serve one embedded model, Hugging Face id or directory"
    )
    serve.add_argument("--engines", type=int, metavar="N", help="number of engines per model")
    serve.add_argument("--gateways", type=int, metavar="N", help="number of gateway processes")
    serve.add_argument(
        "--host",
        help="address to listen on (default 127.0.0.1; an address that other machines can reach "
        "requires `auth` in the file)",
    )
    serve.add_argument("--port", type=int, help="port to listen on (default 8000)")
    serve.add_argument(
        "--timings", action="store_true", help="print the duration of each stage of the start"
    )
    serve.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Serve until a signal ends it. Raises FleetError."""
    config = load.load(options.config) if options.config else FleetConfig()
    config = load.with_overrides(
        config,
        model=options.model,
        engines=options.engines,
        gateways=options.gateways,
        host=options.host,
        port=options.port,
    )
    _serve(config, wants_timings=options.timings)


def _serve(config: FleetConfig, *, wants_timings: bool) -> None:
    """Set the environment, then import Ray, which reads it on import."""
    from qwenfleet.deployments.environment import ray_environment
    from qwenfleet.deployments.haproxy import write_launcher
    from qwenfleet.deployments.operations.processes import remove_files, sweep

    sweep()
    token_path = fleets.state_directory() / f"{os.getpid()}.token"
    haproxy = token_path.with_suffix(".haproxy")
    try:
        write_launcher(haproxy)
        os.environ.update(ray_environment(config, token_path, haproxy))
        from qwenfleet.deployments.operations import serve as operation
        from qwenfleet.deployments.operations.progress import Stages

        began_at = fleets.own_start()
        stages = Stages(age_s=time.time() - began_at)
        stages.clock.begin("importing Ray", at=began_at)
        operation.write_token(token_path)
        operation.stop_on_signals()
        config = operation.check(config, stages)
        operation.serve(config, stages, token_path, wants_timings=wants_timings)
    finally:
        remove_files(token_path)
