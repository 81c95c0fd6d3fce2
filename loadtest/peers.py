"""Other routers for vLLM, started for comparison if installed with `pip install -e .[peers]`."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from qwenfleet.cluster.local.ports import free_port_range, free_ports
from qwenfleet.loadtest import servers
from qwenfleet.loadtest.overhead import Say, Start
from qwenfleet.loadtest.servers import Server

ROUTER_OPTIONS: Final = {
    "vllm-router": ["--policy", "round_robin"],
    # Its tokenizer and load monitoring serve policies that are not used here.
    "smg": [
        *("--policy", "round_robin", "--backend", "vllm", "--disable-tokenizer-autoload"),
        *("--disable-load-monitoring", "--shutdown-grace-period-secs", "0"),
    ],
}
SERVE_LLM_PORTS: Final = 30
"""Ports reserved for Ray Serve's own listeners, after the first one."""


def installed(say: Say) -> list[Start]:
    """Return every installed peer; report the missing ones with `say`."""
    found: list[Start] = []
    for name, start in (("vllm-router", _vllm_router), ("smg", _smg)):
        if _program(name) is None:
            say(f"{name} is not installed, so it is left out")
        else:
            found.append(start)
    if importlib.util.find_spec("pyarrow") is None:
        say("ray.serve.llm needs pyarrow, which is not installed, so it is left out")
    else:
        found += [_ray_serve_llm, _ray_serve_llm_direct]
    return found


def _program(name: str) -> str | None:
    """Find the program in this Python's environment or on the PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


@contextmanager
def _router(name: str, verbs: Sequence[str], directory: Path) -> Iterator[Server]:
    """Run a router in front of vLLM's own server, which is already up."""
    with servers.vllm(directory) as engine:
        port, metrics_port = free_ports(2, "127.0.0.1")
        program = _program(name)
        assert program is not None, "installed() found it"
        command = [
            *(program, *verbs, "--worker-urls", engine.url, *ROUTER_OPTIONS[name]),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
            *("--log-level", "error"),
        ]
        server = Server(name, f"http://127.0.0.1:{port}")
        with servers.running(server, command, {}, directory, ready="/readiness"):
            yield server


@contextmanager
def _ray_serve_llm_direct(directory: Path) -> Iterator[Server]:
    first, *_, last = free_port_range(SERVE_LLM_PORTS, "0.0.0.0")
    environment = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(first),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(first + 1),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(first + 2),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(first + 3),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first + 4),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(last),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # it takes 34 s to stop otherwise
    }
    with _serve_llm("ray.serve.llm, direct", environment, directory) as server:
        yield server


@contextmanager
def _serve_llm(name: str, environment: dict[str, str], directory: Path) -> Iterator[Server]:
    (port,) = free_ports(1, "127.0.0.1")
    ready = directory / "ready"
    command = [sys.executable, "-m", "qwenfleet.loadtest.ray_serve_llm", str(port), str(ready)]
    server = Server(name, f"http://127.0.0.1:{port}")
    # /v1/models answers long before the engine does.
    with servers.running(
        server, command, servers.ENGINE_ENVIRONMENT | environment, directory, ready=ready.exists
    ):
        yield server


_vllm_router: Final = partial(_router, "vllm-router", [])
_smg: Final = partial(_router, "smg", ["launch"])
_ray_serve_llm: Final = partial(_serve_llm, "ray.serve.llm", {})
