"""Tests the environment variables of Ray, HAProxy and vLLM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from pydantic import JsonValue
from ray.serve._private.constants import PROXY_HEALTH_CHECK_UNHEALTHY_THRESHOLD

from qwenfleet.cluster.config.admission import AdmissionConfig
from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig, TracingConfig
from qwenfleet.cluster.config.model import ModelConfig, Replicas
from qwenfleet.deployments import haproxy_keeper
from qwenfleet.deployments.environment import (
    INGRESS_PORTS,
    cluster_environment,
    engine_environment,
    gateway_environment,
    ray_environment,
)
from qwenfleet.deployments.haproxy import write_launcher

HAPROXY = Path("/state/7.haproxy")
TOKEN = Path("/state/7.token")


@pytest.fixture
def ray() -> dict[str, str]:
    config = FleetConfig(gateway=GatewayConfig(request_timeout_s=1799.5))
    return ray_environment(config, TOKEN, HAPROXY)


def test_haproxy_is_started_without_splicing(ray: dict[str, str], tmp_path: Path) -> None:
    """With splicing, HAProxy misses a client's disconnect."""
    assert ray["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(HAPROXY)
    write_launcher(tmp_path / "haproxy")
    run = subprocess.run(
        [tmp_path / "haproxy", "-v"], capture_output=True, text=True, check=True, timeout=30
    )
    assert "HAProxy version" in run.stdout
    assert '"-dS"' in Path(haproxy_keeper.__file__).read_text(encoding="utf-8")


def test_ray_asks_for_a_token(ray: dict[str, str]) -> None:
    assert ray["RAY_AUTH_MODE"] == "token"
    assert ray["RAY_AUTH_TOKEN_PATH"] == str(TOKEN)


def test_haproxy_has_the_bounds_of_clients() -> None:
    admission = AdmissionConfig(
        client_timeout_s=7, body_timeout_s=30, max_connections=99, max_requests_per_address=3
    )
    gateway = GatewayConfig(request_timeout_s=100, admission=admission)
    found = cluster_environment(FleetConfig(gateway=gateway))
    assert found["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "7"
    assert found["RAY_SERVE_HAPROXY_MAXCONN"] == "99"
    assert found["QWENFLEET_REQUESTS_PER_ADDRESS"] == "3"
    assert int(found["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"]) > 130, "body, answer, and an error"
    assert "QWENFLEET_REQUESTS_PER_ADDRESS" not in cluster_environment(FleetConfig())


def test_haproxy_cuts_no_stream_before_its_deadline(ray: dict[str, str]) -> None:
    assert ray["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert float(ray["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) >= 1799.5
    assert float(ray["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"]) >= 1799.5


def test_haproxys_manager_outlasts_a_minute_of_lost_network(ray: dict[str, str]) -> None:
    """Serve ends HAProxy with a manager that it replaces."""
    assert PROXY_HEALTH_CHECK_UNHEALTHY_THRESHOLD == 3
    assert 3 * float(ray["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"]) > 60
    assert float(ray["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"]) <= 2


def test_every_port_is_free_and_distinct(ray: dict[str, str]) -> None:
    ports = [value for name, value in ray.items() if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) >= 4
    assert all(1024 <= int(port) <= 65535 for port in ports)
    assert {"8404", "9101"}.isdisjoint(ports)  # HAProxy's defaults, which two fleets would share


def test_workers_run_at_normal_priority_and_haproxy_has_its_threads(
    ray: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray["RAY_worker_niceness"] == "0"
    for cores, threads in ((2, "2"), (16, "4")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        environment = ray_environment(FleetConfig(), TOKEN, HAPROXY)
        assert environment["RAY_SERVE_HAPROXY_NBTHREAD"] == threads


def test_engine_on_cpus_is_one_process_and_on_gpus_uses_vllms_default() -> None:
    cpu, gpu = ModelConfig(id="m"), ModelConfig(id="m", accelerator="H100")
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    assert engine_environment(FleetConfig(), cpu)[name] == "0"
    assert name not in engine_environment(FleetConfig(), gpu)


def test_shared_volume_holds_caches_for_the_next_start() -> None:
    names = ("HF_HUB_CACHE", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    shared = FleetConfig(cache_dir="/mnt/cache")
    for environment in (
        gateway_environment(shared),
        engine_environment(shared, shared.models[0]),
        ray_environment(shared, TOKEN, HAPROXY),  # `serve` looks for a model there too
    ):
        assert all(environment[name].startswith("/mnt/cache/") for name in names)
    assert not set(names) & engine_environment(FleetConfig(), FleetConfig().models[0]).keys()


def test_usage_reports_are_disabled(ray: dict[str, str]) -> None:
    config = FleetConfig()
    assert ray["RAY_USAGE_STATS_ENABLED"] == "0"
    for environment in (
        ray,
        gateway_environment(FleetConfig()),
        engine_environment(config, config.models[0]),
    ):
        assert environment["VLLM_NO_USAGE_STATS"] == "1"
        assert environment["DO_NOT_TRACK"] == "1"


def test_gateway_runs_vllm_without_a_device_on_its_event_loop() -> None:
    environment = gateway_environment(FleetConfig())
    assert environment["VLLM_TARGET_DEVICE"] == "cpu"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] == "0"


@pytest.mark.parametrize(
    ("cores", "engines", "threads"),
    [(1, 1, "1"), (2, 1, "1"), (2, 3, "1"), (4, 1, "3"), (16, 3, "5")],
)
def test_engines_on_one_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, engines: int, threads: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    model = ModelConfig(id="m", replicas=Replicas(min=engines, max=engines))
    gpu = ModelConfig(id="g", accelerator="H100", replicas=Replicas(min=8, max=8))
    environment = engine_environment(FleetConfig(models=(model, gpu)), model)
    assert environment["OMP_NUM_THREADS"] == threads
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_engine_on_gpus_keeps_vllms_threads() -> None:
    model = ModelConfig(id="m", accelerator="H100")
    environment = engine_environment(FleetConfig(models=(model,)), model)
    assert not {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"} & environment.keys()


def test_embedded_model_does_not_access_the_hub() -> None:
    embedded, other = ModelConfig(id="smollm2-135m-instruct"), ModelConfig(id="acme/coder")
    config = FleetConfig(models=(embedded, other))
    assert engine_environment(config, embedded)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in engine_environment(config, other)


def test_core_exports_start_spans_to_the_fleets_or_its_own_endpoint() -> None:
    def traced(**engine_args: JsonValue) -> dict[str, str]:
        model = ModelConfig(id="coder", engine_args=engine_args)
        config = FleetConfig(models=(model,), tracing=TracingConfig(endpoint="http://c:4318"))
        environment = engine_environment(config, model)
        return {name: value for name, value in environment.items() if name.startswith("OTEL_")}

    assert traced() == {
        "OTEL_SERVICE_NAME": "qwenfleet-engine",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }
    assert traced(otlp_traces_endpoint="http://own:4317") == {
        "OTEL_SERVICE_NAME": "qwenfleet-engine",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://own:4317",
    }
    untraced = engine_environment(FleetConfig(), FleetConfig().models[0])
    assert not any(name.startswith("OTEL_") for name in untraced)


def test_cluster_environment_is_the_laptops_without_the_token(ray: dict[str, str]) -> None:
    config = FleetConfig(gateway=GatewayConfig(request_timeout_s=1799.5))
    cluster = cluster_environment(config, HAPROXY)
    assert ray.keys() - cluster.keys() == {
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_ENABLE_AUTO_CONNECT",
    }
    unlike = {name for name, value in cluster.items() if ray[name] != value}
    assert all(name.endswith(("_PORT", "_NBTHREAD")) for name in unlike)


def test_cluster_ports_are_the_same_on_every_node() -> None:
    one, other = cluster_environment(FleetConfig()), cluster_environment(FleetConfig())
    assert one == other
    ports = [int(value) for name, value in one.items() if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports)
    assert all(not 10002 <= port < 20000 for port in ports)  # Ray's workers have those
    first = int(one["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])
    assert int(one["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"]) - first == INGRESS_PORTS - 1
