"""Placement: what an engine takes of each of its nodes, and which nodes Ray gave it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from qwenfleet.cluster.config.model import ModelConfig

Bundle = dict[str, float]


def node_bundle(model: ModelConfig) -> Bundle:
    """What an engine takes of each of its nodes: all its GPUs there in one bundle."""
    if model.accelerator is None:
        return {"CPU": 1}
    gpus = float(model.sharding.gpus_per_node)
    return {"CPU": 1, "GPU": gpus, f"accelerator_type:{model.accelerator}": 0.001}


def actor_resources(bundle: Mapping[str, float]) -> dict[str, Any]:
    """The bundle as options of the Ray actor that fills it."""
    others = {name: value for name, value in bundle.items() if name not in {"CPU", "GPU"}}
    options: dict[str, Any] = {"num_cpus": bundle["CPU"]}
    if "GPU" in bundle:
        options["num_gpus"] = bundle["GPU"]
    return options | ({"resources": others} if others else {})


def engine_nodes() -> dict[str, str]:
    """Ids and addresses of the Ray nodes that this process's engine spans: those of its replica's
    placement group, or without one its own. Blocks: it asks the GCS."""
    chosen = {ray.get_runtime_context().get_node_id()}
    group = ray.util.get_current_placement_group()
    if isinstance(group, PlacementGroup):
        chosen |= set(placement_group_table(group)["bundles_to_node_id"].values())
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["NodeID"] in chosen
    }
