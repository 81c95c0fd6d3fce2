"""`qwenfleet serve`: a whole fleet on this machine, from the checks to the last process's end."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, Final

import psutil

from qwenfleet.cluster import machine, run_file, sources
from qwenfleet.cluster.config import FleetConfig, ModelConfig
from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.cluster.machine import EngineNeed
from qwenfleet.cluster.run_file import RunningFleet
from qwenfleet.deployments.environment import ray_environment

POLL_S: Final = 0.25
OBJECT_STORE_BYTES: Final = 128 * 2**20
"""Requests never enter Ray's object store; it holds actor arguments only."""
SHUTDOWN_S: Final = 15.0


class Stages:
    """Progress lines with the seconds since the start, on the standard output of its making."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_at = clock()
        self._stream = sys.stdout

    def say(self, text: str) -> None:
        self.print(f"[{self._clock() - self._started_at:6.1f}s] {text}")

    def print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def serve(config: FleetConfig) -> None:
    """Run the fleet until SIGINT or SIGTERM. Raises FleetError when it cannot start."""
    stages = Stages()
    stop = threading.Event()
    _stop_on_signals(stop)
    _check(config, stages)
    token_path = run_file.state_directory() / f"{os.getpid()}.token"
    log_path = token_path.with_suffix(".log")
    try:
        _write_token(token_path)
        os.environ.update(ray_environment(config, token_path))
        with _chatter_to(log_path):
            _run(config, token_path, stages, stop)
    finally:
        token_path.unlink(missing_ok=True)
        log_path.unlink(missing_ok=True)
    stages.say("stopped")


def _run(config: FleetConfig, token_path: Path, stages: Stages, stop: threading.Event) -> None:
    """The fleet's life, with its processes gone at the end whatever happened."""
    try:
        fleet = _start(config, token_path, stages)
        record = run_file.write(fleet)
        try:
            _watch(config, fleet, stages, stop)
        finally:
            record.unlink(missing_ok=True)
    finally:
        children = psutil.Process().children(recursive=True)
        stages.say("stopping")
        _shut_down()
        _end(children)


@contextmanager
def _chatter_to(path: Path) -> Iterator[None]:
    """Ray prints what its processes suffer; that goes to a file while the fleet runs, not between
    our lines."""
    with path.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        yield


def _check(config: FleetConfig, stages: Stages) -> None:
    """What can be known to fail is said before anything starts."""
    machine.check_cpu(machine.read_cpuinfo(), platform.machine())
    machine.check_port(config.gateway.host, config.gateway.port)
    needs = []
    for model in config.models:
        path = sources.locate(model.resolved_source, stages.say)
        if not os.path.isdir(path):
            stages.say(f"looking for {path} on the Hugging Face Hub")
            sources.check_hub(path)
        if model.accelerator is None and model.engine == "vllm":
            needs.append(_need(model, path))
    ours = config.gateway.replicas * machine.GATEWAY_BYTES + machine.RAY_BYTES
    machine.check_memory(needs, max(0, machine.available_memory_bytes() - ours))


def _need(model: ModelConfig, path: str) -> EngineNeed:
    weights = sources.weight_bytes(Path(path)) if os.path.isdir(path) else None
    return EngineNeed(
        model=model.id,
        engines=model.replicas.min,
        bytes_each=machine.engine_bytes(weights or 0, model.kv_cache_gib),
    )


def _write_token(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))


def _start(config: FleetConfig, token_path: Path, stages: Stages) -> RunningFleet:
    """Start Ray and deploy the application, without waiting for engines."""
    stages.say("starting Ray")
    import ray
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions

    engines = sum(model.replicas.min for model in config.models)
    (metrics_port,) = machine.free_ports(1, "127.0.0.1")
    context: Any = ray.init(
        address="local",
        num_cpus=engines + config.gateway.replicas + 1,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _metrics_export_port=metrics_port,
    )
    stages.say("deploying the gateway and the engines")
    from qwenfleet.deployments.app import build

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray_serve.start(http_options=HTTPOptions(host=config.gateway.host, port=config.gateway.port))
    ray_serve.run_many(
        [ray_serve.RunTarget(target=build(config), name=config.name, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    return RunningFleet(
        pid=os.getpid(),
        started_at=run_file.own_start(),
        name=config.name,
        url=f"http://{config.gateway.host}:{config.gateway.port}",
        ray_address=context.address_info["gcs_address"],
        ray_token_path=str(token_path),
        metrics_port=metrics_port,
        models=[model.id for model in config.models],
    )


def _watch(config: FleetConfig, fleet: RunningFleet, stages: Stages, stop: threading.Event) -> None:
    """Tell what comes up, in the order in which it does. Raises EngineStartError when a model
    cannot."""
    from qwenfleet.deployments import registry

    told: dict[str, str] = {}
    is_announced = False
    was_complete = False
    while not stop.wait(POLL_S):
        try:
            snapshot = registry.read(fleet.name)
        except ValueError:
            continue  # nobody has started the registry yet
        _raise_failures(snapshot)
        _tell_engines(snapshot, told, stages)
        if not is_announced and any(gateway.is_ready for gateway in snapshot.gateways):
            is_announced = True
            stages.say(f"ready: {fleet.url}")
            stages.print(example(fleet.url, config.models[0].id))
        is_complete = _is_complete(config, snapshot)
        if is_complete and not was_complete:
            stages.say(f"all {len(snapshot.engines)} engines ready; Ctrl-C stops the fleet")
        was_complete = is_complete


def _is_complete(config: FleetConfig, snapshot: Any) -> bool:
    """Whether every engine and gateway that was asked for answers for every model."""
    ready = [engine for engine in snapshot.engines if engine.state == "ready"]
    models = {model.id for model in config.models}
    gateways = [gateway for gateway in snapshot.gateways if set(gateway.models) == models]
    wanted = sum(model.replicas.min for model in config.models)
    return len(ready) >= wanted and len(gateways) >= config.gateway.replicas


def _tell_engines(snapshot: Any, told: dict[str, str], stages: Stages) -> None:
    """Say what changed since `told`, which is brought up to date."""
    models = {engine.id: engine.model for engine in snapshot.engines}
    now = {
        engine.id: "loading" if engine.state == "starting" else engine.state
        for engine in snapshot.engines
        if engine.is_loading or engine.state != "starting"
    }
    for engine, word in now.items():
        if told.get(engine) != word:
            stages.say(f"engine {engine} of {models[engine]}: {word}")
    for engine in told.keys() - now.keys():
        stages.say(f"engine {engine}: lost")
    told.clear()
    told.update(now)


def _raise_failures(snapshot: Any) -> None:
    """An engine that failed START_ATTEMPTS times will not come; one that failed once may."""
    from qwenfleet.deployments.app import START_ATTEMPTS

    for failure in snapshot.failures:
        times = sum(other.model == failure.model for other in snapshot.failures)
        if times >= START_ATTEMPTS:
            raise EngineStartError(failure.model, failure.reason, failure.log_file)


def example(url: str, model: str) -> str:
    """A command that works as printed."""
    return (
        f"\n  curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '"
        f'{{"model": "{model}", "temperature": 0, "max_tokens": 200, "messages": '
        '[{"role": "user", "content": "Write a Python function that reverses a string"}]}'
        "'\n"
    )


def _stop_on_signals(stop: threading.Event) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)


def _shut_down() -> None:
    import ray
    from ray import serve as ray_serve

    try:
        ray_serve.shutdown()
    except ray.exceptions.RayError:
        logging.getLogger(__name__).info("Serve was gone already")
    ray.shutdown()


def _end(children: list[psutil.Process]) -> None:
    """Whatever we started and Ray left: HAProxy outlives a killed proxy actor, for one."""
    _, left = psutil.wait_procs(children, timeout=SHUTDOWN_S)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=SHUTDOWN_S)
