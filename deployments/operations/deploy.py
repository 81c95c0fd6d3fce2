"""A fleet onto the Ray cluster that this process runs in, and off it again."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import ray
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import DeployFailed, EngineStartError, FleetNotFound, StartTimeout
from qwenfleet.deployments.app import application
from qwenfleet.deployments.operations.progress import Progress, Stages
from qwenfleet.deployments.registry import client

POLL_S: Final = 1.0
PYTHON_PROXY: Final = (
    "note: Ray Serve's Python proxy answers HTTP here, at ten times the CPU of HAProxy; for that "
    "set RAY_SERVE_ENABLE_HA_PROXY=1 where `ray start` runs, on every node"
)


def deploy(config: FleetConfig, config_file: str, *, timeout_s: float) -> None:
    """Deploy the fleet, or change the one of its name, and wait until all of it is ready. Raises
    FleetError."""
    stages = Stages()
    with _driver():
        if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
            stages.say(PYTHON_PROXY)
        stages.say(f"deploying fleet '{config.name}'")
        ray_serve.start(
            http_options=HTTPOptions(host=config.gateway.host, port=config.gateway.port)
        )
        target = application(config, _working_dir(config.name, Path(config_file)))
        ray_serve.run_many(
            [ray_serve.RunTarget(target=target, name=config.name, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        _wait(config, stages, timeout_s)


def stop(config: FleetConfig) -> None:
    """Remove the fleet; its streams get Serve's graceful shutdown. Raises FleetNotFound."""
    stages = Stages()
    with _driver():
        if config.name not in _applications():
            raise FleetNotFound(
                f"no fleet '{config.name}' runs on this Ray cluster",
                f"These applications do: {', '.join(_applications()) or 'none'}.",
            )
        ray_serve.delete(config.name)
        client.end(config.name)
        stages.say(f"fleet '{config.name}' is removed")


def raise_failed_deployment(config: FleetConfig) -> None:
    """Raises EngineStartError when Serve has given the fleet up."""
    deployed = ray_serve.status().applications.get(config.name)
    if deployed is not None and deployed.status == "DEPLOY_FAILED":
        reason = " ".join(deployed.message.split())[:300]
        raise EngineStartError(config.models[0].id, reason)


@contextmanager
def _driver() -> Iterator[None]:
    """Inside, this process is a driver of its cluster. Raises FleetNotFound where there is none,
    and DeployFailed when Ray does not do what it is asked inside."""
    try:
        ray.init(
            address="auto",
            namespace=client.NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError) as error:
        raise FleetNotFound(
            "this process is in no Ray cluster",
            "Run it by `ray job submit`, or use `qwenfleet serve` on one machine.",
        ) from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        yield
    except (RayServeException, ray.exceptions.RayError, ValueError) as error:
        raise DeployFailed(
            f"Ray did not do what this job asked of it: {_said(error)}",
            "Run this again; what runs already stays. The logs of Ray's head and of Serve's "
            "controller say more.",
        ) from error
    finally:
        ray.shutdown()


def _said(error: Exception) -> str:
    """Without the traceback of another process, at whose end its own words are."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    words = lines[-1:] if isinstance(error, ray.exceptions.RayTaskError) else lines
    return " ".join(" ".join(words).split())[:300].rstrip(".")


def _applications() -> list[str]:
    try:
        return sorted(ray_serve.status().applications)
    except RayServeException:
        return []


def _wait(config: FleetConfig, stages: Stages, timeout_s: float) -> None:
    url = f"http://{config.gateway.host}:{config.gateway.port}"
    progress = Progress(config, url, stages, last_words="the fleet stays when this job ends")
    give_up_at = time.monotonic() + timeout_s
    while not (progress.is_complete and _is_settled(config)):
        if time.monotonic() > give_up_at:
            raise StartTimeout(
                f"fleet '{config.name}' is not ready after {timeout_s:.0f} s",
                "It goes on starting; run this again to wait on, with a longer --timeout.",
            )
        time.sleep(POLL_S)
        raise_failed_deployment(config)
        with suppress(ValueError, ray.exceptions.RayError):  # not there yet, or busy
            if _is_settled(config):  # until then it may be the old fleet that is complete
                progress.tell(client.read(config.name))


def _is_settled(config: FleetConfig) -> bool:
    deployed = ray_serve.status().applications.get(config.name)
    return deployed is not None and deployed.status == "RUNNING"


def _working_dir(fleet: str, config_file: Path) -> str | None:
    """The package that replicas run from; None when this is no job with a working directory.

    Ray makes a new package of a directory in which a character of the configuration changed, and
    Serve restarts every replica for a new package: the code's first one is as good.
    """
    uri = ray.get_runtime_context().runtime_env.get("working_dir")
    if not isinstance(uri, str):
        return None
    return client.first_package(fleet, _code_hash(Path.cwd(), config_file.resolve()), uri)


def _code_hash(root: Path, but: Path) -> str:
    """Of every file below `root` and its path, one file left out."""
    total = hashlib.sha256()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for path in (Path(folder, name) for name in sorted(files)):
            if path.resolve() != but:
                total.update(str(path.relative_to(root)).encode() + b"\0")
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
