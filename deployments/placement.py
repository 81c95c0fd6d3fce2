"""Placement: the resources of an engine on each of its nodes, and the nodes that Ray chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from qwenfleet.cluster.config.model import ModelConfig

Bundle = dict[str, float]


def node_bundle(model: ModelConfig) -> Bundle:
    """Return an engine's resources on one node: all its GPUs there in one bundle."""
    if model.accelerator is None:
        return {"CPU": 1}
    gpus = float(model.sharding.gpus_per_node)
    return {"CPU": 1, "GPU": gpus, f"accelerator_type:{model.accelerator}": 0.001}


def actor_resources(bundle: Mapping[str, float]) -> dict[str, Any]:
    """Return the options of the Ray actor that uses the whole bundle."""
    others = {name: value for name, value in bundle.items() if name not in {"CPU", "GPU"}}
    options: dict[str, Any] = {"num_cpus": bundle["CPU"]}
    if "GPU" in bundle:
        options["num_gpus"] = bundle["GPU"]
    return options | ({"resources": others} if others else {})


def wire_host(is_on_one_machine: bool) -> str:
    """Return the address at which this process's engine listens for gateways. On a Ray cluster they
    may run on other nodes, now or later, wherever the cluster's HTTP listens."""
    return "127.0.0.1" if is_on_one_machine else str(ray.util.get_node_ip_address())


def engine_nodes() -> dict[str, str]:
    """Return ids and addresses of the Ray nodes of this process's engine.

    They come from the replica's placement group; without one, it is this node. Blocks on a call to
    the GCS.
    """
    chosen = {ray.get_runtime_context().get_node_id()}
    group = ray.util.get_current_placement_group()
    if isinstance(group, PlacementGroup):
        chosen |= set(placement_group_table(group)["bundles_to_node_id"].values())
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["NodeID"] in chosen
    }
