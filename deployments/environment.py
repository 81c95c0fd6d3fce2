"""Sets the environment variables of Ray, HAProxy and vLLM from the configuration.

These are settings that the programs read only from the environment. A few more are set where a
process starts: vLLM's plugin path, a follower's rank, and the token of an attached command.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qwenfleet.cluster.config.fleet import FleetConfig, TracingConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.local.ports import free_port_range
from qwenfleet.cluster.models.sources import EMBEDDED
from qwenfleet.deployments.haproxy_keeper import ADDRESS_BOUND

ENGINE_SERVICE: Final = "qwenfleet-engine"
"""Service name in the spans of engines and their cores."""
FRONT_CORES: Final = 1
"""Cores left to gateways, hosts, HAProxy and clients. If one of them displaces an OpenMP thread,
all other threads of that engine spin at the next barrier."""
HAPROXY_THREADS: Final = 4
"""Serve's own default; more threads than cores only take turns."""
INGRESS_PORTS: Final = 100
"""The port of a stopped gateway replica is not reused for as long as a stream may live."""

LATE_ANSWER_S: Final = 30
"""Time for a gateway to answer that a deadline is over, before HAProxy answers in its place."""
DEREGISTER_S: Final = 2
"""Serve's controller looks at its replicas each 0.5 s and tells each HAProxy 0.1 s later, which
takes some 0.3 s to reload (RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S)."""
CLUSTER_INGRESS_PORTS: Final = range(30000, 30000 + INGRESS_PORTS)
"""Above Ray's worker ports (10002 to 19999), below the kernel's ephemeral ports."""
IMAGE_HAPROXY: Final = Path("/opt/qwenfleet/haproxy")
"""Path of the launcher that `haproxy.write_launcher` makes, in the image of helm/image."""


def ray_environment(config: FleetConfig, token_path: Path, haproxy: Path) -> dict[str, str]:
    """Return the environment of the process that starts Ray on this machine. Set it before Ray is
    imported; child processes inherit it."""
    # Below the kernel's ephemeral ports: one of those may be in use before HAProxy starts.
    # Serve shares its replicas' ports and starts at 30000 in every cluster: two fleets on one
    # machine would answer each other's requests.
    ports = free_port_range(6 + INGRESS_PORTS, "0.0.0.0")
    return {
        # Without it, a call that comes after Ray's end would start another Ray.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        **_common(config, haproxy, ports),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(HAPROXY_THREADS, len(os.sched_getaffinity(0)))),
    }


def cluster_environment(config: FleetConfig, haproxy: Path = IMAGE_HAPROXY) -> dict[str, str]:
    """Return the environment of each process that starts Ray on its own node, head or worker. Its
    ports are the defaults of Ray and Serve. The cluster's token is not included."""
    return _common(config, haproxy, (8404, 9101, 44217, 44227, 8500, 9500, *CLUSTER_INGRESS_PORTS))


def _common(config: FleetConfig, haproxy: Path, ports: Sequence[int]) -> dict[str, str]:
    """Return what both environments share.

    `ports`: HAProxy statistics, HAProxy metrics, autoscaler metrics, dashboard metrics, fallback
    proxy HTTP, fallback proxy gRPC, then the gateway replicas.
    """
    stats, metrics, autoscaler, dashboard, proxy, grpc = map(str, ports[:6])
    admission = config.gateway.admission
    timeout_s = math.ceil(config.gateway.longest_answer_s)
    bound = admission.max_requests_per_address
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Ray would run its workers, here gateways and engines, at nice 15.
        "RAY_worker_niceness": "0",
        # Records of single actor calls are not used; writing them took a third of the GCS's idle
        # CPU.
        "RAY_task_events_report_interval_ms": "0",
        # Serve's control loop runs ten times a second; health checks are every 2 s.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        "AUTOSCALER_METRIC_PORT": autoscaler,
        "DASHBOARD_METRIC_PORT": dashboard,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(HAPROXY_THREADS),
        "RAY_SERVE_HAPROXY_STATS_PORT": stats,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": proxy,  # HAProxy's backup: also shared
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": grpc,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports[6]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports[-1]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
        # Serve replaces HAProxy's manager after three failed checks: soon if it is dead (Serve's
        # own period is 10 s), and after 90 s, not 30 s, if it cannot be reached.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
        # When gateways change, HAProxy cuts connections older than this; no stream is older than
        # its deadline.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(timeout_s),
        # A client has no part in the time until an answer comes, however long that is.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(admission.client_timeout_s),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(timeout_s + LATE_ANSWER_S),
        "RAY_SERVE_HAPROXY_MAXCONN": str(admission.max_connections),
        **({} if bound is None else {ADDRESS_BOUND: str(bound)}),
        # A gateway that stops accepts connections until every HAProxy has been informed; then its
        # port refuses, and HAProxy goes to another one. Serve's own value is 30 s.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DEREGISTER_S),
        **_caches(config),
        **_no_usage_reports(),
    }


def gateway_environment(config: FleetConfig) -> dict[str, str]:
    """Return the environment of a gateway replica: vLLM without a device, and user code on the
    replica's own event loop."""
    return {
        "VLLM_TARGET_DEVICE": "cpu",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # vLLM's logging setup closes every handler, including Serve's.
        "VLLM_CONFIGURE_LOGGING": "0",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **_caches(config),
        **_no_usage_reports(),
    }


def engine_environment(config: FleetConfig, model: ModelConfig) -> dict[str, str]:
    """Return the environment of an engine replica and the core and workers that it starts."""
    environment = _no_usage_reports() | _caches(config)
    if model.accelerator is None:
        pools = [pool for pool in config.engine_pools if pool.runs_vllm_on_cpu]
        ranks = sum(pool.replicas.min * pool.sharding.num_gpus for pool in pools)
        cores = len(os.sched_getaffinity(0)) - FRONT_CORES
        threads = max(1, cores // max(1, ranks))
        # vLLM's own binding gives every engine the same cores, and OpenMP threads of two engines
        # on one core spin against each other.
        environment |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            # One process for core and worker, as on a GPU. On CPUs vLLM splits them for its
            # binding, which costs a second import and a hop per step.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    if model.resolved_source in EMBEDDED:
        environment["HF_HUB_OFFLINE"] = "1"
    if config.tracing is not None:
        environment |= _core_traces(config.tracing, model)
    return environment | model.env


def _core_traces(tracing: TracingConfig, model: ModelConfig) -> dict[str, str]:
    """Return what a core needs to export the spans of its start; vLLM's own server sets the same
    variables."""
    environment = {"OTEL_SERVICE_NAME": ENGINE_SERVICE}
    own = model.engine_args.get("otlp_traces_endpoint")
    if own is not None:  # keep vLLM's default protocol
        return environment | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": str(own)}
    return environment | {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": tracing.traces_url,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }


def _caches(config: FleetConfig) -> dict[str, str]:
    """Return the cache folders of Hugging Face, vLLM, Inductor and Triton, for reuse by the next
    start."""
    if config.cache_dir is None:
        return {}
    root = Path(config.cache_dir)
    return {
        "HF_HUB_CACHE": str(root / "huggingface"),  # not HF_HOME, which holds this user's token
        "HF_XET_CACHE": str(root / "xet"),
        "VLLM_CACHE_ROOT": str(root / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "TRITON_CACHE_DIR": str(root / "triton"),
    }


def _no_usage_reports() -> dict[str, str]:
    return {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
