"""Deploys a fleet on the Ray cluster of this process, and removes it."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import ray
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import DeployFailed, FleetNotFound, one_line
from qwenfleet.deployments.app import application
from qwenfleet.deployments.operations.deployment import Deployment
from qwenfleet.deployments.operations.progress import Stages
from qwenfleet.deployments.registry import client

POLL_S: Final = 1.0
PYTHON_PROXY: Final = (
    "note: Ray Serve's Python proxy handles HTTP here and uses ten times the CPU of HAProxy; to "
    "use HAProxy, set RAY_SERVE_ENABLE_HA_PROXY=1 for `ray start` on every node"
)


def deploy(config: FleetConfig, config_file: str, *, timeout_s: float) -> None:
    """Deploy the fleet, or update the running fleet of that name, and wait until all of it is
    ready. Raises FleetError."""
    stages = Stages()
    with _driver():
        if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
            stages.say(PYTHON_PROXY)
        stages.say(f"deploying fleet '{config.name}'")
        ray_serve.start(
            http_options=HTTPOptions(host=config.gateway.host, port=config.gateway.port)
        )
        deployment = Deployment(config, stages)
        target = application(config, _working_dir(config.name, Path(config_file)))
        ray_serve.run_many(
            [ray_serve.RunTarget(target=target, name=config.name, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        deployment.wait(timeout_s)
        client.end_legacy(config.name)


def stop(config: FleetConfig, *, timeout_s: float) -> None:
    """Remove the fleet with Serve's graceful shutdown, in which its requests finish. Raises
    FleetNotFound, or DeployFailed if it does not end in time."""
    stages = Stages()
    with _driver():
        if config.name not in _applications():
            raise FleetNotFound(
                f"this Ray cluster does not run fleet '{config.name}'",
                f"Its applications: {', '.join(_applications()) or 'none'}.",
            )
        stages.say(f"removing fleet '{config.name}', whose running requests may finish")
        ray_serve.delete(config.name, _blocking=False)
        give_up_at = time.monotonic() + timeout_s
        while config.name in _applications():
            if time.monotonic() > give_up_at:
                raise DeployFailed(
                    f"fleet '{config.name}' still finishes requests after {timeout_s:.0f} s",
                    "It takes no new ones and ends by itself; to keep waiting, run this again.",
                )
            time.sleep(POLL_S)
        client.end(config.name)
        stages.say(f"fleet '{config.name}' is removed")


@contextmanager
def _driver() -> Iterator[None]:
    """Make this process a driver of its cluster for the length of the block.

    Raises FleetNotFound outside a cluster, and DeployFailed when Ray fails inside the block.
    """
    try:
        ray.init(
            address="auto",
            namespace=client.NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError) as error:
        raise FleetNotFound(
            "this process does not run in a Ray cluster",
            "Run it with `ray job submit`, or use `qwenfleet serve` on one machine.",
        ) from error
    except Exception as error:  # Ray raises no narrower type when its node is late
        raise DeployFailed(
            f"Ray did not accept this process as a driver: {_message(error)}",
            "Run this again; if it fails again, look into the log of this node's raylet.",
        ) from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        yield
    except (RayServeException, ray.exceptions.RayError, ValueError, TimeoutError) as error:
        raise DeployFailed(
            f"Ray rejected the deployment: {_message(error)}",
            "Run this again; what already runs keeps running. For details, see the logs of the "
            "Ray head and of the Serve controller.",
        ) from error
    finally:
        ray.shutdown()


def _message(error: Exception) -> str:
    """Return the error's message; for a remote traceback, its last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    kept = lines[-1:] if isinstance(error, ray.exceptions.RayTaskError) else lines
    return one_line(" ".join(kept))


def _applications() -> list[str]:
    try:
        return sorted(ray_serve.status().applications)
    except RayServeException:
        return []


def _working_dir(fleet: str, config_file: Path) -> str | None:
    """Return the package that replicas run from; None outside a job with a working directory.

    Ray makes a new package when one character of the configuration changes, and Serve restarts
    every replica for a new package. So unchanged code keeps its first package.
    """
    uri = ray.get_runtime_context().runtime_env.get("working_dir")
    if not isinstance(uri, str):
        return None
    return client.first_package(fleet, _code_hash(Path.cwd(), config_file.resolve()), uri)


def _code_hash(root: Path, but: Path) -> str:
    """Hash the path and content of every file below `root`, except `but`."""
    total = hashlib.sha256()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for path in (Path(folder, name) for name in sorted(files)):
            if path.resolve() != but:
                total.update(str(path.relative_to(root)).encode() + b"\0")
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
