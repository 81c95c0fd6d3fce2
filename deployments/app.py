"""The Serve application: one gateway deployment, and one engine deployment for each model."""

from __future__ import annotations

from typing import Any, cast

from ray.serve import Application, Deployment

from qwenfleet.cluster.config import FleetConfig, ModelConfig, dump
from qwenfleet.cluster.models import completed
from qwenfleet.deployments.engine import DRAIN_S, Engine
from qwenfleet.deployments.environment import engine_environment, gateway_environment
from qwenfleet.deployments.gateway import Gateway
from qwenfleet.deployments.logs import REPLICA_LOG

START_ATTEMPTS = 3
"""A start that fails three times in a row fails for a reason that a fourth does not cure."""


def build(config: FleetConfig | dict[str, Any]) -> Application:
    """What `import_path: qwenfleet.deployments.app:build` deploys; `args` is the FleetConfig as a
    mapping."""
    fleet = completed(
        config if isinstance(config, FleetConfig) else FleetConfig.model_validate(config)
    )
    tree = dump(fleet)
    engines = [
        cast(Deployment, Engine)
        .options(
            name=f"engine-{index}",
            num_replicas=model.replicas.min,
            max_constructor_retry_count=START_ATTEMPTS,
            graceful_shutdown_timeout_s=2 * DRAIN_S,
            health_check_period_s=2,
            health_check_timeout_s=30,
            logging_config=REPLICA_LOG,
            ray_actor_options=_engine_resources(fleet, model),
        )
        .bind(tree, model.id)
        for index, model in enumerate(fleet.models)
    ]
    gateway = cast(Deployment, Gateway).options(
        name="gateway",
        num_replicas=fleet.gateway.replicas,
        max_ongoing_requests=fleet.gateway.max_ongoing_requests,
        health_check_period_s=2,
        health_check_timeout_s=30,
        logging_config=REPLICA_LOG,
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": gateway_environment()}},
    )
    return gateway.bind(tree, *engines)


def _engine_resources(fleet: FleetConfig, model: ModelConfig) -> dict[str, Any]:
    """One bundle for one engine: all its GPUs on one node, or one CPU."""
    options: dict[str, Any] = {
        "num_cpus": 1,
        "runtime_env": {"env_vars": engine_environment(fleet, model)},
    }
    if model.accelerator is not None:
        options["num_gpus"] = model.num_gpus
        options["accelerator_type"] = model.accelerator
    return options
