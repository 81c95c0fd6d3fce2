"""`qwenfleet serve`: runs a whole fleet on this machine, from the checks to the last process."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import ray
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import FleetLost, MachineError, one_line
from qwenfleet.cluster.local import cpu, fleets, memory, ports
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.cluster.local.memory import EngineNeed
from qwenfleet.cluster.models import sources
from qwenfleet.cluster.planner.fleet_checks import check_cpu_models, check_fleet
from qwenfleet.cluster.planner.fleet_defaults import completed
from qwenfleet.deployments import haproxy
from qwenfleet.deployments.app import application
from qwenfleet.deployments.operations import processes
from qwenfleet.deployments.operations.ending import Ending
from qwenfleet.deployments.operations.observer import Observer
from qwenfleet.deployments.operations.observer import read as observe
from qwenfleet.deployments.operations.output import ray_output_to
from qwenfleet.deployments.operations.parts import PartReader, Parts, Restarts
from qwenfleet.deployments.operations.progress import Progress, Stages
from qwenfleet.deployments.operations.watchdog import watched
from qwenfleet.deployments.registry.call_thread import in_thread

POLL_S: Final = 0.25
IDLE_POLL_S: Final = 1.0
"""How late a progress line may be while the fleet starts (POLL_S) and afterwards. Each poll is one
actor call: 2 ms of CPU on each side."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(
    config: FleetConfig, stages: Stages, token_path: Path, *, wants_timings: bool = False
) -> None:
    """Run the fleet until a signal. `environment.ray_environment` must be set before Ray's import.

    Raises FleetError when the fleet cannot start or cannot go on, after all its processes have
    ended.
    """
    parts = PartReader(os.getpid())
    ending, status = Ending(parts), 1
    with watched(token_path), ray_output_to(token_path.with_suffix(".log")):
        try:
            running = _start(config, token_path, stages)
            record = fleets.write(running)
            try:
                progress = Progress(config, running.url, stages, wants_timings=wants_timings)
                _run(progress, config, running, parts, stages)
            finally:
                record.unlink(missing_ok=True)
        except KeyboardInterrupt:
            status = 0
        except FleetLost:
            ending.is_lost = True
            raise
        finally:
            for number in SIGNALS:
                signal.signal(number, ending.hurry)
            stages.say("stopping")
            try:
                ending.run(config.name, status)
            finally:
                processes.end_fleet(token_path, processes.GRACE_S if ending.is_done else 0.0)
            stages.say("stopped")


def check(config: FleetConfig, stages: Stages) -> FleetConfig:
    """Report every problem that can be detected before anything starts. Returns the fleet with the
    KV cache that this machine has room for."""
    stages.begin("checking this machine and its models")
    for sentence in check_fleet(config, has_gateway=True):
        stages.say(f"warning: {sentence}")
    cpu.check_cpu(cpu.read_cpuinfo(), platform.machine())
    ports.check_port(config.gateway.host, config.gateway.port)
    # The planner rejects a layout that a model cannot have.
    _check_nodes(completed(config))
    ours = config.gateway.replicas * memory.GATEWAY_BYTES + memory.RAY_BYTES
    room = max(0, memory.available_memory_bytes() - ours)
    check_cpu_models(config, room)
    needs = []
    for model in config.models:
        path = sources.locate(model.resolved_source, stages.say)
        if not os.path.isdir(path):
            stages.say(f"looking for {path} on the Hugging Face Hub")
            sources.check_hub(path)
        needs += [_need(pool, path) for pool in model.engine_pools if pool.runs_vllm_on_cpu]
    memory.check_memory(needs, room)
    return _with_kv_cache(config, memory.shared_kv_gib(needs, room))


def _with_kv_cache(config: FleetConfig, kv_cache_gib: float) -> FleetConfig:
    """Return the fleet with this KV cache for the engines that have none configured."""
    models = [
        model.model_copy(update={"kv_cache_gib": kv_cache_gib})
        if model.kv_cache_gib is None
        else model
        for model in config.models
    ]
    return config.model_copy(update={"models": tuple(models)})


def _check_nodes(config: FleetConfig) -> None:
    """Raise MachineError for an engine on several nodes: Serve would wait for them forever without
    a message."""
    for pool in config.engine_pools:
        if pool.sharding.nodes > 1:
            raise MachineError(
                f"an engine of '{pool.id}' spans {pool.sharding.nodes} nodes "
                f"({pool.sharding.name}), but this is one machine",
                "Deploy it on a Ray cluster, or choose a layout for one node.",
            )


def write_token(path: Path) -> None:
    """Write a new secret for this fleet's Ray cluster, readable by this user only."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))


def stop_on_signals() -> None:
    """Make Ctrl-C, `kill` and a closed terminal stop the fleet in the same way."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, handle)


def _need(model: ModelConfig, path: str) -> EngineNeed:
    weights = sources.weight_bytes(Path(path)) if os.path.isdir(path) else None
    is_open, ranks = model.kv_cache_gib is None, model.sharding.num_gpus
    kv_cache_gib = model.kv_cache_gib or memory.LEAST_KV_GIB
    return EngineNeed(
        model=model.id,
        engines=model.replicas.min,
        bytes_each=memory.engine_bytes(weights or 0, kv_cache_gib, ranks),
        open_ranks=ranks if is_open else 0,
    )


def _start(config: FleetConfig, token_path: Path, stages: Stages) -> RunningFleet:
    """Start Ray."""
    stages.begin("starting Ray")
    (metrics_port,) = ports.free_ports(1, "127.0.0.1")
    try:
        context: Any = ray.init(
            address="local",
            num_cpus=config.num_engines + config.gateway.replicas + 1,
            include_dashboard=False,
            object_store_memory=memory.OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _metrics_export_port=metrics_port,
        )
    except Exception as error:  # a bare one when Ray runs into its own time limit
        raise _not_started(error) from error
    stop_on_signals()  # Ray has installed its own SIGTERM handler
    _check_gpus(completed(config))
    host = "127.0.0.1" if config.gateway.host in {"0.0.0.0", "::"} else config.gateway.host
    return RunningFleet(
        pid=os.getpid(),
        started_at=fleets.own_start(),
        name=config.name,
        url=f"http://{f'[{host}]' if ':' in host else host}:{config.gateway.port}",
        ray_address=context.address_info["gcs_address"],
        ray_token_path=str(token_path),
        metrics_port=metrics_port,
        models=[model.id for model in config.models],
        has_keys=config.has_keys,
        ray_logs=f"{context.address_info['session_dir']}/logs",
    )


def _not_started(error: Exception) -> MachineError:
    return MachineError(
        f"Ray did not start: {one_line(error)}", "See /tmp/ray/session_latest/logs."
    )


def _deploy(config: FleetConfig) -> None:
    """Deploy the application; do not wait for engines."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray_serve.start(
            http_options=HTTPOptions(host=config.gateway.host, port=config.gateway.port)
        )
        target = application(config, is_on_one_machine=True)
        ray_serve.run_many(
            [ray_serve.RunTarget(target=target, name=config.name, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    except (
        RuntimeError,
        ConnectionError,
        TimeoutError,
        RayServeException,
        ray.exceptions.RayError,
    ) as error:
        raise _not_started(error) from error


def _check_gpus(config: FleetConfig) -> None:
    """Raise MachineError if GPUs are missing: Serve would wait for them forever without a
    message."""
    present = int(ray.cluster_resources().get("GPU", 0))
    needed = sum(pool.num_gpus * pool.replicas.min for pool in config.engine_pools)
    if needed > present:
        raise MachineError(
            f"the engines need {needed} GPUs, but this machine has {present}",
            "Remove 'accelerator' to run on CPUs, ask for fewer engines, or set the layout that "
            f"`qwenfleet plan --gpus-per-node {max(present, 1)}` chooses.",
        )


def _run(
    progress: Progress,
    config: FleetConfig,
    running: RunningFleet,
    parts: PartReader,
    stages: Stages,
) -> None:
    """Deploy the fleet and report what happens until a signal.

    Raises FleetLost when the fleet cannot go on, EngineStartError or GatewayStartError when it
    cannot start.
    """
    judge = Parts(running.ray_logs)
    restarts = Restarts(haproxy.journal(Path(running.ray_token_path)))
    stages.begin("deploying the gateway and the engines")
    deployment = in_thread(partial(_deploy, config))
    while not deployment.done():
        judge.news(parts.read())
        wait([deployment], timeout=POLL_S)
    deployment.result()
    stages.begin("waiting for the first engine")
    observer = Observer(
        lambda: observe(running.name, running.url, wants_serve=not progress.is_complete),
        lambda: IDLE_POLL_S if progress.is_complete else POLL_S,
    )
    try:
        while True:
            reading = observer.next(POLL_S)
            for sentence in (*judge.news(parts.read()), *restarts.news(), *observer.news()):
                stages.say(sentence)
            if reading is not None:
                progress.report(reading.snapshot, reading.readiness, reading.deployments)
    finally:
        observer.stop()
