"""What Ray, HAProxy and vLLM read only from the environment, set here and nowhere else, from the
configuration."""

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

ENGINE_SERVICE: Final = "qwenfleet-engine"
"""What spans of engines and their cores call their service."""
FRONT_CORES: Final = 1
"""Left to gateways, hosts, HAProxy and clients: an OpenMP thread that one of them displaces keeps
all others of its engine spinning at the next barrier."""
HAPROXY_THREADS: Final = 4
"""Serve's own number; more threads than cores only take turns."""
INGRESS_PORTS: Final = 100
"""A port that a gateway replica leaves is not given out again for as long as a stream may live."""

CLUSTER_INGRESS_PORTS: Final = range(30000, 30000 + INGRESS_PORTS)
"""Above the ports that Ray gives to its workers (10002 to 19999), below the kernel's own."""
IMAGE_HAPROXY: Final = Path("/opt/qwenfleet/haproxy")
"""Where helm/image puts the launcher of `haproxy.write_launcher`."""


def ray_environment(config: FleetConfig, token_path: Path, haproxy: Path) -> dict[str, str]:
    """For the process that starts Ray on this machine, before Ray is imported: its children inherit
    it."""
    # Below the kernel's own: one that it may give to any connection is taken before HAProxy starts.
    # Serve opens its replicas' ports to sharing and starts at 30000 in every cluster, so that two
    # fleets of one machine would answer each other's requests.
    ports = free_port_range(6 + INGRESS_PORTS, "0.0.0.0")
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        **_common(config, haproxy, ports),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(HAPROXY_THREADS, len(os.sched_getaffinity(0)))),
    }


def cluster_environment(config: FleetConfig, haproxy: Path = IMAGE_HAPROXY) -> dict[str, str]:
    """For every process that starts Ray on a node of its own, head and workers alike: the ports are
    Ray's and Serve's own. The cluster's token is not among it."""
    return _common(config, haproxy, (8404, 9101, 44217, 44227, 8500, 9500, *CLUSTER_INGRESS_PORTS))


def _common(config: FleetConfig, haproxy: Path, ports: Sequence[int]) -> dict[str, str]:
    """`ports`: those of HAProxy's statistics and metrics, of the autoscaler's and the dashboard's
    metrics, of the fallback proxy's HTTP and gRPC, then those of gateway replicas."""
    stats, metrics, autoscaler, dashboard, proxy, grpc = map(str, ports[:6])
    timeout_s = math.ceil(config.gateway.request_timeout_s)
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Gateways and engines are what the machine is for; Ray would run its workers at nice 15.
        "RAY_worker_niceness": "0",
        # Nobody lists single actor calls; recording each took a third of the GCS's idle CPU.
        "RAY_task_events_report_interval_ms": "0",
        # Serve looks after its replicas ten times a second; their health checks come every 2 s.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        "AUTOSCALER_METRIC_PORT": autoscaler,
        "DASHBOARD_METRIC_PORT": dashboard,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(HAPROXY_THREADS),
        "RAY_SERVE_HAPROXY_STATS_PORT": stats,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": proxy,  # HAProxy's backup: shared likewise
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": grpc,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports[6]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports[-1]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
        # HAProxy cuts what is older than this when gateways change; no stream is older than its
        # deadline.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(timeout_s),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(timeout_s),
        # Serve's floor of 30 s for every shutdown; graceful_shutdown_timeout_s is the bound.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        **_caches(config),
        **_no_calls_home(),
    }


def gateway_environment(config: FleetConfig) -> dict[str, str]:
    """For a gateway replica: vLLM without a device, and answers sent from the loop that makes
    them."""
    return {
        "VLLM_TARGET_DEVICE": "cpu",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # vLLM's own set-up of logging closes every handler there is, Serve's among them.
        "VLLM_CONFIGURE_LOGGING": "0",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **_caches(config),
        **_no_calls_home(),
    }


def engine_environment(config: FleetConfig, model: ModelConfig) -> dict[str, str]:
    """For an engine replica and the core and workers that it starts."""
    environment = _no_calls_home() | _caches(config)
    if model.accelerator is None:
        pools = [pool for pool in config.engine_pools if pool.runs_vllm_on_cpu]
        ranks = sum(pool.replicas.min * pool.sharding.num_gpus for pool in pools)
        cores = len(os.sched_getaffinity(0)) - FRONT_CORES
        threads = max(1, cores // max(1, ranks))
        # vLLM's own binding gives every engine the same cores; OpenMP threads of two engines on one
        # core spin against each other.
        environment |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            # One process for core and worker, as on a GPU: vLLM splits them on CPUs for the sake of
            # the binding, at the price of a second import and of a hop in each step.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    if model.resolved_source in EMBEDDED:
        environment["HF_HUB_OFFLINE"] = "1"
    if config.tracing is not None:
        environment |= _core_traces(config.tracing, model)
    return environment | model.env


def _core_traces(tracing: TracingConfig, model: ModelConfig) -> dict[str, str]:
    """For the spans that a core makes of its start; in vLLM's own server, that puts them there."""
    environment = {"OTEL_SERVICE_NAME": ENGINE_SERVICE}
    own = model.engine_args.get("otlp_traces_endpoint")
    if own is not None:  # with vLLM's protocol, whatever that is
        return environment | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": str(own)}
    return environment | {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": tracing.traces_url,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }


def _caches(config: FleetConfig) -> dict[str, str]:
    """Where Hugging Face, vLLM, Inductor and Triton keep what the next start can use again."""
    if config.cache_dir is None:
        return {}
    root = Path(config.cache_dir)
    return {
        "HF_HUB_CACHE": str(root / "huggingface"),  # not HF_HOME, where this user's token is
        "HF_XET_CACHE": str(root / "xet"),
        "VLLM_CACHE_ROOT": str(root / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "TRITON_CACHE_DIR": str(root / "triton"),
    }


def _no_calls_home() -> dict[str, str]:
    return {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
