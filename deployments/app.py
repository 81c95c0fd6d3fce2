"""Builds the Serve application: one gateway deployment, and one engine deployment per pool."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any, cast

from ray.serve import Application, Deployment

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig, dump
from qwenfleet.cluster.config.model import FRONT_END_ARGS, ModelConfig, Replicas, SamplingDefaults
from qwenfleet.cluster.config.slo import SloConfig
from qwenfleet.cluster.config.vllm_arguments import GATEWAY
from qwenfleet.cluster.local import version
from qwenfleet.cluster.planner.fleet_checks import check_fleet
from qwenfleet.cluster.planner.fleet_defaults import completed
from qwenfleet.deployments.engine import DRAIN_S, Engine
from qwenfleet.deployments.environment import engine_environment, gateway_environment
from qwenfleet.deployments.gateway import Gateway
from qwenfleet.deployments.placement import actor_resources, node_bundle
from qwenfleet.deployments.telemetry.logs import REPLICA_LOG

logger = logging.getLogger(__name__)

ROLE_LABEL = "qwenfleet.io/role"
"""Ray label that reserves a node for engines or for gateways; a node without it takes both."""
START_ATTEMPTS = 3
"""After three failed starts in a row, a fourth would fail for the same reason."""
HEALTH_PERIOD_S = 2
HEALTH_TIMEOUT_S = 30
"""Serve replaces a replica whose check fails three times in a row
(REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD). A replica that cannot be reached fails a check once per
timeout, so that it outlives a network that is cut for 90 s; streams outlive that too."""
SURGE_PERCENT = 1
"""Serve rounds up: an update starts one new gateway before it stops an old one."""
SPARE_REQUESTS = 256
"""Requests above a gateway's own limit that Serve lets in, so that the gateway refuses them itself,
at once and in the API's form, and answers probes meanwhile. Serve's queue takes as many, because a
burst passes through it even while nothing has to wait (ray 2.60 serve/_private/replica.py)."""
DRAIN_MARGIN_S = 15.0
"""Time for a gateway that drains to send its last errors before Serve kills it."""


def build(config: dict[str, Any]) -> Application:
    """Build the application of `import_path: qwenfleet.deployments.app:build`.

    Serve passes `args`, the FleetConfig as a mapping. Raises FleetError for a configuration that
    cannot work.
    """
    fleet = FleetConfig.model_validate(config)
    for sentence in check_fleet(fleet):
        logger.warning("configuration: %s", sentence)
    return application(fleet)


def application(
    config: FleetConfig, working_dir: str | None = None, *, is_on_one_machine: bool = False
) -> Application:
    """Build the fleet's application. Its replicas run from the package `working_dir`; None: from
    the job's package or the installed one. Only engines of a fleet that is on one machine listen
    on loopback."""
    fleet = completed(config)
    engines = [
        _engine(
            fleet,
            pool,
            f"engine-{index}{f'-{name}' if name else ''}",
            name,
            working_dir,
            is_on_one_machine,
        )
        for index, model in enumerate(fleet.models)
        for pool, name in zip(model.engine_pools, _pool_names(model), strict=True)
    ]
    view = _gateway_view(fleet)
    gateway = cast(Deployment, Gateway).options(
        **_version(view),
        name="gateway",
        num_replicas=fleet.gateway.replicas,
        max_ongoing_requests=fleet.gateway.max_ongoing_requests + SPARE_REQUESTS,
        max_queued_requests=fleet.gateway.max_ongoing_requests + SPARE_REQUESTS,
        max_constructor_retry_count=START_ATTEMPTS,
        max_surge_percent=SURGE_PERCENT,
        graceful_shutdown_timeout_s=fleet.gateway.longest_drain_s + DRAIN_MARGIN_S,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        logging_config=REPLICA_LOG,
        user_config={"objectives": {m: dump(slo) for m, slo in fleet.objectives.items()}},
        ray_actor_options={
            "num_cpus": 1,
            "label_selector": {ROLE_LABEL: "!engine"},
            "runtime_env": _runtime_env(gateway_environment(fleet), working_dir),
        },
    )
    return gateway.bind(view, *engines)


def _pool_names(model: ModelConfig) -> list[str]:
    return [pool.name for pool in model.pools] or [""]


def _engine(
    fleet: FleetConfig,
    pool: ModelConfig,
    name: str,
    pool_name: str,
    working_dir: str | None,
    is_on_one_machine: bool,
) -> Application:
    """Build the deployment of one pool's engines."""
    view = _engine_view(fleet, pool)
    return (
        cast(Deployment, Engine)
        .options(
            **_version(view),
            name=name,
            num_replicas=pool.replicas.min,
            max_constructor_retry_count=START_ATTEMPTS,
            graceful_shutdown_timeout_s=2 * DRAIN_S,
            health_check_period_s=HEALTH_PERIOD_S,
            health_check_timeout_s=HEALTH_TIMEOUT_S,
            logging_config=REPLICA_LOG,
            **_placement(pool, _runtime_env(engine_environment(fleet, pool), working_dir)),
        )
        .bind(view, pool.id, pool_name, is_on_one_machine)
    )


# A replica restarts when its version changes, so the version covers only what the replica uses: a
# new number of engines restarts nothing, and a new engine memory size restarts no gateway.


_GATEWAYS_ONLY: dict[str, Any] = {
    "slo": None,
    "sampling": SamplingDefaults(),
    "tool_call_parser": None,
    "tool_strict_level": None,
    "chat_template": None,
    "fill_in_the_middle": None,
}
"""Settings of a model that no engine reads, with their defaults."""


def _engine_view(fleet: FleetConfig, model: ModelConfig) -> dict[str, Any]:
    args = {name: value for name, value in model.engine_args.items() if name not in GATEWAY}
    own = _GATEWAYS_ONLY | {"replicas": Replicas(), "engine_args": args}
    view = fleet.model_copy(
        update={
            "models": (model.model_copy(update=own),),
            "gateway": GatewayConfig(),
            "logging": fleet.logging.model_copy(update={"access": True}),  # gateways' alone
            "auth": "none",  # engines check no keys, so new keys restart no engine
            "slo": SloConfig(),
        }
    )
    return dump(view)


def _gateway_view(fleet: FleetConfig) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "replicas": Replicas(),
        "script": None,
        "kv_cache_gib": None,
        "accelerator": None,
        "layout": None,
        "env": {},
        "pools": (),
        "slo": None,  # passed as user_config: a change restarts nothing
    }
    models = tuple(
        model.model_copy(update=plain | {"engine_args": _front_end_args(model)})
        for model in fleet.models
    )
    gateway = fleet.gateway.model_copy(update={"replicas": 1})
    others = {"models": models, "gateway": gateway, "slo": SloConfig()}
    return dump(fleet.model_copy(update=others))


def _front_end_args(model: ModelConfig) -> dict[str, Any]:
    """Return the engine arguments that gateways use. Arguments that the planner derives from
    machines and layout are left out, so that a new layout restarts no gateway."""
    return {name: model.engine_args[name] for name in FRONT_END_ARGS if name in model.engine_args}


def _version(view: dict[str, Any]) -> dict[str, Any]:
    """Return Serve's internal version option. Without it, redeploying restarts every replica.
    With `serveConfigV2`, Serve sets it to a hash of all arguments."""
    text = json.dumps([version.own_version(), view], sort_keys=True)
    return {"version": hashlib.sha256(text.encode()).hexdigest()[:16], "_internal": True}


def _runtime_env(environment: dict[str, str], working_dir: str | None) -> dict[str, Any]:
    package = {} if working_dir is None else {"working_dir": working_dir}
    return {"env_vars": environment, **package}


def _placement(pool: ModelConfig, runtime_env: dict[str, Any]) -> dict[str, Any]:
    """Return one bundle per node of an engine, with all its GPUs of that node. The replica runs in
    the first bundle."""
    bundle = node_bundle(pool)
    selector = {ROLE_LABEL: "!gateway"}
    options: dict[str, Any] = {
        "ray_actor_options": {**actor_resources(bundle), "runtime_env": runtime_env}
    }
    if pool.sharding.nodes == 1:
        options["ray_actor_options"]["label_selector"] = selector
    else:
        options["placement_group_bundle_label_selector"] = [selector] * pool.sharding.nodes
        options["placement_group_bundles"] = [bundle] * pool.sharding.nodes
        options["placement_group_strategy"] = "STRICT_SPREAD"
    return options
