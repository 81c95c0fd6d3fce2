"""Tests the Serve application of a configuration, without a cluster."""

from __future__ import annotations

from typing import Any, cast

import pytest
from ray.serve._private import constants as ray_constants
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from qwenfleet.cluster.config.auth import AuthConfig, hash_of
from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig, TracingConfig, dump
from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import (
    ModelConfig,
    Pool,
    Replicas,
    SamplingDefaults,
    ScriptConfig,
)
from qwenfleet.deployments.app import (
    DRAIN_MARGIN_S,
    HEALTH_PERIOD_S,
    ROLE_LABEL,
    SPARE_REQUESTS,
    START_ATTEMPTS,
    application,
    build,
)
from qwenfleet.deployments.environment import DEREGISTER_S, gateway_environment
from qwenfleet.deployments.gateway import LAST_ERRORS_S
from qwenfleet.deployments.ingress.drain import LAST_CALL_S
from qwenfleet.deployments.ingress.exchange import ABORT_GRACE_S

CONFIG = FleetConfig(
    models=(
        ModelConfig(id="coder", engine="scripted", replicas=Replicas(min=3, max=3)),
        ModelConfig(
            id="big",
            engine="scripted",
            accelerator="AMD-Instinct-MI300X-OAM",
            layout=Layout(tensor_parallel_size=4, data_parallel_size=2),
        ),
    ),
    gateway=GatewayConfig(replicas=2, max_ongoing_requests=77),
)


def deployments(config: FleetConfig) -> tuple[Any, list[Any]]:
    """Return the gateway and engine deployments, as passed to Serve."""
    return bound(application(config))


def bound(served: Any) -> tuple[Any, list[Any]]:
    gateway = served._bound_deployment
    return gateway, [argument._bound_deployment for argument in gateway.init_args[1:]]


def test_each_model_becomes_one_engine_deployment_with_its_replicas() -> None:
    gateway, engines = deployments(CONFIG)
    assert len({gateway.name, *(engine.name for engine in engines)}) == 3
    assert [engine.num_replicas for engine in engines] == [3, 1]
    assert [engine.init_args[1] for engine in engines] == ["coder", "big"]
    retries = [engine._deployment_config.max_constructor_retry_count for engine in engines]
    assert retries == [START_ATTEMPTS] * 2


def test_gateway_has_its_replicas_and_accepts_more_than_serves_five_requests() -> None:
    gateway, _ = deployments(CONFIG)
    assert gateway.num_replicas == 2
    assert gateway.max_ongoing_requests == 77 + SPARE_REQUESTS
    assert gateway._deployment_config.max_queued_requests == 77 + SPARE_REQUESTS
    environment = gateway.ray_actor_options["runtime_env"]["env_vars"]
    assert environment.items() >= gateway_environment(CONFIG).items()


def test_engine_gets_one_cpu_or_all_of_its_gpus() -> None:
    _, (cpu, gpu) = deployments(CONFIG)
    assert cpu.ray_actor_options["num_cpus"] == 1
    assert not cpu.ray_actor_options.get("num_gpus")
    assert gpu.ray_actor_options["num_gpus"] == 8
    # Serve turns the accelerator type into a label or a resource; both contain its name.
    assert "AMD-Instinct-MI300X-OAM" in str(gpu.ray_actor_options)


def trees(config: FleetConfig) -> list[Any]:
    """Return what Serve compares to decide which replicas to restart: the gateway's tree, then each
    engine's."""
    gateway, engines = deployments(config)
    return [deployment.init_args[0] for deployment in (gateway, *engines)]


def test_change_restarts_only_the_deployments_it_concerns() -> None:
    gateway, *engines = [FleetConfig.model_validate(tree) for tree in trees(CONFIG)]
    assert [model.id for model in gateway.models] == ["coder", "big"]
    assert gateway.gateway == CONFIG.gateway.model_copy(update={"replicas": 1})
    assert [[model.id for model in engine.models] for engine in engines] == [["coder"], ["big"]]
    for tree in (gateway, *engines):
        assert (tree.name, tree.wire) == (CONFIG.name, CONFIG.wire)
    assert engines[1].models[0].engine_args == CONFIG.models[1].engine_args


def changed(config: FleetConfig, **model: Any) -> FleetConfig:
    first, *others = config.models
    return config.model_copy(update={"models": (first.model_copy(update=model), *others)})


def test_more_or_fewer_engines_or_gateways_restart_nothing() -> None:
    assert trees(changed(CONFIG, replicas=Replicas(min=5, max=5))) == trees(CONFIG)
    gateway = CONFIG.gateway.model_copy(update={"replicas": 7})
    assert trees(CONFIG.model_copy(update={"gateway": gateway})) == trees(CONFIG)


def test_engine_setting_restarts_only_the_engines_of_that_model() -> None:
    for change in ({"kv_cache_gib": 3.0}, {"script": ScriptConfig(num_tokens=7)}):
        before, after = trees(CONFIG), trees(changed(CONFIG, **change))
        assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_gateways_get_prompt_arguments_but_not_hardware_arguments() -> None:
    arguments = {"max_num_seqs": 512, "tokenizer_mode": "slow"}
    gateway, engine, _ = trees(changed(CONFIG, engine_args=arguments))
    assert gateway["models"][0]["engine_args"] == {"tokenizer_mode": "slow"}
    assert engine["models"][0]["engine_args"].items() >= arguments.items()


def test_gateway_of_a_planned_model_does_not_depend_on_its_machines() -> None:
    source = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
    views = [
        trees(FleetConfig(models=(ModelConfig(id="c", source=source, accelerator=name),)))
        for name in ("H200", "AMD-Instinct-MI300X-OAM")
    ]
    assert views[0][0] == views[1][0]
    assert views[1][1]["models"][0]["env"] == {"VLLM_ROCM_USE_AITER": "1"}


def test_gateway_setting_restarts_no_engine() -> None:
    gateway = CONFIG.gateway.model_copy(update={"keep_alive_s": 99.0, "host": "localhost"})
    before, after = trees(CONFIG), trees(CONFIG.model_copy(update={"gateway": gateway}))
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": SamplingDefaults(temperature=0.1)},
        {"tool_call_parser": "hermes"},
        {"chat_template": "{{ messages }}"},
        {"fill_in_the_middle": "chat"},
        {"engine_args": {"stream_interval": 4}},
    ],
)
def test_front_end_setting_of_a_model_restarts_only_gateways(change: dict[str, Any]) -> None:
    before, after = trees(CONFIG), trees(changed(CONFIG, **change))
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]


def test_gateway_has_the_longest_request_and_a_margin_to_drain() -> None:
    longest, set_by_hand = GatewayConfig(request_timeout_s=1800), GatewayConfig(drain_s=60)
    for settings, drain_s in ((longest, 1800), (set_by_hand, 60)):
        gateway, _ = deployments(FleetConfig(gateway=settings))
        options = gateway._deployment_config
        assert options.graceful_shutdown_timeout_s == drain_s + DRAIN_MARGIN_S
        assert DRAIN_MARGIN_S > DEREGISTER_S + LAST_ERRORS_S + 2 * ABORT_GRACE_S


@pytest.mark.parametrize("replicas", [1, 2, 7, 100])
def test_update_starts_a_gateway_before_it_stops_one(replicas: int) -> None:
    gateway, _ = deployments(FleetConfig(gateway=GatewayConfig(replicas=replicas)))
    percent = gateway._deployment_config.max_surge_percent
    surge = (percent * replicas + 99) // 100  # as in ray 2.60 serve/_private/deployment_state.py
    assert surge == 1


def test_gateway_whose_start_fails_three_times_is_given_up() -> None:
    gateway, _ = deployments(CONFIG)
    assert gateway._deployment_config.max_constructor_retry_count == START_ATTEMPTS


NETWORK_CUT_S = 30
"""Streams outlive a network that is cut for this long."""


def test_replica_that_cannot_be_reached_outlives_a_network_cut() -> None:
    gateway, engines = deployments(CONFIG)
    for deployment in (gateway, *engines):
        options = deployment._deployment_config
        # The first check may have been sent just before its answer was lost.
        unhealthy_s = (
            ray_constants.REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD * options.health_check_timeout_s
        )
        assert unhealthy_s - options.health_check_period_s > 2 * NETWORK_CUT_S


def test_gateway_that_leaves_by_itself_serves_until_haproxy_has_noticed() -> None:
    probe_s = float(ray_constants.RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER.removesuffix("s"))
    again_s = (
        float(ray_constants.RAY_SERVE_HAPROXY_HEALTH_CHECK_FASTINTER.removesuffix("ms")) / 1000
    )
    failures = ray_constants.RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL
    noticed_s = 1.1 * HEALTH_PERIOD_S + 0.5 + probe_s + (failures - 1) * again_s
    assert noticed_s < LAST_CALL_S


def test_tracing_change_restarts_gateways_and_engines() -> None:
    before = trees(CONFIG)
    after = trees(CONFIG.model_copy(update={"tracing": TracingConfig(sample_ratio=0.5)}))
    assert [old == new for old, new in zip(before, after, strict=True)] == [False] * 3


def test_key_change_restarts_only_gateways() -> None:
    gateway = CONFIG.gateway.model_copy(update={"host": "0.0.0.0"})
    one, other = (
        CONFIG.model_copy(update={"gateway": gateway, "auth": AuthConfig(keys=(hash_of(key),))})
        for key in ("first", "second")
    )
    before, after = trees(one), trees(other)
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]
    views = [FleetConfig.model_validate(tree) for tree in after]
    assert [tree.has_keys for tree in views] == [True, False, False]


def test_serve_config_file_builds_the_same_application() -> None:
    of_the_file = call_user_app_builder_with_args_if_necessary(cast(Any, build), dump(CONFIG))
    one, other = deployments(CONFIG), bound(of_the_file)
    assert one[0].init_args[0] == other[0].init_args[0]
    assert [engine.name for engine in one[1]] == [engine.name for engine in other[1]]


def test_only_engines_of_a_fleet_on_one_machine_listen_on_loopback() -> None:
    for served, expected in (
        (application(CONFIG), False),
        (call_user_app_builder_with_args_if_necessary(cast(Any, build), dump(CONFIG)), False),
        (application(CONFIG, is_on_one_machine=True), True),
    ):
        assert [engine.init_args[3] for engine in bound(served)[1]] == [expected] * 2


def test_invalid_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="replicass"):
        build({"replicass": 1})


def test_engine_on_two_nodes_has_one_bundle_on_each() -> None:
    layout = Layout.parse("TP8xDP2+EP16@2")
    model = ModelConfig(id="coder", accelerator="H100", layout=layout)
    _, (engine,) = deployments(FleetConfig(models=(model,)))
    replica = engine._deployment_config, engine._replica_config
    bundles = replica[1].placement_group_bundles
    assert bundles == [{"CPU": 1, "GPU": 8, "accelerator_type:H100": 0.001}] * 2
    assert replica[1].placement_group_strategy == "STRICT_SPREAD"
    assert engine.ray_actor_options["num_gpus"] == 8


def test_each_pool_becomes_a_deployment_with_its_own_environment() -> None:
    pools = (
        Pool(name="h100", accelerator="H100", layout=Layout(tensor_parallel_size=8)),
        Pool(
            name="mi300x",
            accelerator="AMD-Instinct-MI300X-OAM",
            layout=Layout(tensor_parallel_size=4),
            replicas=Replicas(min=2),
            env={"VLLM_ROCM_USE_AITER": "1"},
        ),
    )
    gateway, engines = deployments(FleetConfig(models=(ModelConfig(id="coder", pools=pools),)))
    assert [engine.name for engine in engines] == ["engine-0-h100", "engine-0-mi300x"]
    assert [engine.num_replicas for engine in engines] == [1, 2]
    assert [engine.ray_actor_options["num_gpus"] for engine in engines] == [8, 4]
    assert [engine.init_args[1:3] for engine in engines] == [
        ("coder", "h100"),
        ("coder", "mi300x"),
    ]
    environments = [e.ray_actor_options["runtime_env"]["env_vars"] for e in engines]
    assert "VLLM_ROCM_USE_AITER" not in environments[0]
    assert environments[1]["VLLM_ROCM_USE_AITER"] == "1"
    tree = FleetConfig.model_validate(gateway.init_args[0])
    assert tree.models[0].pools == (), "a change of pools restarts no gateway"


def test_node_reserved_for_one_role_takes_no_replica_of_the_other() -> None:
    gateway, engines = deployments(CONFIG)
    assert gateway.ray_actor_options["label_selector"] == {ROLE_LABEL: "!engine"}
    for engine in engines:
        assert engine.ray_actor_options["label_selector"] == {ROLE_LABEL: "!gateway"}


def test_engine_on_several_nodes_avoids_gateway_nodes() -> None:
    layout = Layout(tensor_parallel_size=8, data_parallel_size=2, expert_parallel=True, nodes=2)
    wide = ModelConfig(id="wide", engine="scripted", accelerator="H100", layout=layout)
    _, (engine,) = deployments(FleetConfig(models=(wide,)))
    selectors = engine._replica_config.placement_group_bundle_label_selector
    assert selectors == [{ROLE_LABEL: "!gateway"}] * 2
    assert "label_selector" not in engine.ray_actor_options
