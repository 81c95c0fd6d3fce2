"""The servers that a benchmark compares.

Each is started by its normal command, on loopback, with the same model, engine settings and
threads. The fleet compiles the model here, as vLLM does by default; the default for embedded models
does not, to start sooner.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import psutil
import urllib3
import yaml

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import BenchmarkError
from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.cluster.models import sources
from qwenfleet.deployments.environment import engine_environment
from qwenfleet.loadtest import closed_loop, process_tree
from qwenfleet.loadtest.closed_loop import ClosedLoop, Sample

MODEL: Final = "tiny-qwen3-moe"
MAX_MODEL_LEN: Final = 4096
KV_CACHE_BYTES: Final = 2**30
_ENGINE: Final = ModelConfig(id=MODEL)
ENGINE_ENVIRONMENT: Final = engine_environment(FleetConfig(models=(_ENGINE,)), _ENGINE)
"""Environment of the engine in a fleet of one engine on this machine."""
START_TIMEOUT_S: Final = 600.0
"""Five imports of vLLM on two busy cores took 215 s (ray.serve.llm)."""
STOP_TIMEOUT_S: Final = 60.0
GRACE_S: Final = 5.0
"""How long leftover processes of a server may take to end."""
_POOL: Final = urllib3.PoolManager(retries=False)
"""Ignores the environment's proxies, which would also get requests to loopback."""


@dataclass(frozen=True)
class Server:
    """A running server with a completions API at `url`."""

    name: str
    url: str


def load(server: Server, traffic: ClosedLoop, seconds: float, rng: random.Random) -> Sample:
    """Run one load on one running server."""
    return asyncio.run(
        closed_loop.run(
            traffic,
            url=server.url,
            model=MODEL,
            seconds=seconds,
            server_cpu_s=process_tree.cpu_s,
            rng=rng,
        )
    )


@contextmanager
def vllm(directory: Path) -> Iterator[Server]:
    """Run vLLM's own server with the settings of a fleet's engine."""
    with _vllm("vllm", ENGINE_ENVIRONMENT, directory) as server:
        yield server


@contextmanager
def vllm_as_it_comes(directory: Path) -> Iterator[Server]:
    """Run vLLM's own server without the environment that qwenfleet sets."""
    with _vllm("vllm as it comes", {"HF_HUB_OFFLINE": "1"}, directory) as server:
        yield server


@contextmanager
def _vllm(name: str, environment: Mapping[str, str], directory: Path) -> Iterator[Server]:
    (port,) = free_ports(1, "127.0.0.1")
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", sources.locate(MODEL), "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", str(MAX_MODEL_LEN)),
        *("--kv-cache-memory-bytes", str(KV_CACHE_BYTES)),
        "--disable-uvicorn-access-log",
    ]
    server = Server(name, f"http://127.0.0.1:{port}")
    with running(server, command, environment, directory, ready="/health"):
        yield server


@contextmanager
def fleet(directory: Path) -> Iterator[Server]:
    """Run a fleet with one gateway and one engine."""
    model = {
        "id": MODEL,
        "replicas": {"min": 1},
        "max_model_len": MAX_MODEL_LEN,
        "kv_cache_gib": KV_CACHE_BYTES / 2**30,
        "engine_args": {"enforce_eager": False},  # vLLM's default
    }
    with configured_fleet("fleet", directory, {"models": [model]}) as server:
        yield server


@contextmanager
def configured_fleet(name: str, directory: Path, config: Mapping[str, object]) -> Iterator[Server]:
    """Run `qwenfleet serve` with this configuration on a free port."""
    (port,) = free_ports(1, "127.0.0.1")
    gateway = config.get("gateway", {})
    assert isinstance(gateway, Mapping)
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**config, "gateway": {**gateway, "port": port}}))
    server = Server(name, f"http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "qwenfleet.cli", "serve", "--config", str(path)]
    environment = {"XDG_STATE_HOME": str(directory / "state")}
    with running(server, command, environment, directory, ready="/health/ready"):
        yield server


@contextmanager
def running(
    server: Server,
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    *,
    ready: str | Callable[[], bool],
) -> Iterator[None]:
    """Start a server, wait until it is `ready` (a path that answers 200, or a function), and end
    all its processes afterwards.

    Raises BenchmarkError if it ends or does not answer in time.
    """
    log = directory / f"{server.name}.log"
    before = set(psutil.Process().children(recursive=True))
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        is_ready = ready if callable(ready) else partial(answers, server.url + ready)
        _wait_until(is_ready, process, server, log)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        left = set(psutil.Process().children(recursive=True)) - before
        _, stubborn = psutil.wait_procs(left, timeout=GRACE_S)
        for orphan in stubborn:
            orphan.kill()
        psutil.wait_procs(stubborn, timeout=GRACE_S)
        process_tree.reap(left)


def answers(url: str) -> bool:
    """Whether a GET of this URL returns 200 now."""
    try:
        return _POOL.request("GET", url, timeout=5.0, redirect=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def _wait_until(
    claim: Callable[[], bool], process: subprocess.Popen[bytes], server: Server, log: Path
) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while not claim():
        if process.poll() is not None:
            raise BenchmarkError(
                f"{server.name} ended with status {process.returncode}", f"See {log}."
            )
        if time.monotonic() > give_up_at:
            raise BenchmarkError(
                f"{server.name} did not answer within {START_TIMEOUT_S:.0f} s", f"See {log}."
            )
        time.sleep(0.5)
