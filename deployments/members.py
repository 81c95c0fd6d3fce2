"""The Ray nodes that the engine in this process spans."""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table


def members() -> dict[str, str]:
    """Ray's node ids and the nodes' addresses, of its replica's placement group, or of its own node
    without one. Blocks: it asks the GCS."""
    chosen = {ray.get_runtime_context().get_node_id()}
    group = ray.util.get_current_placement_group()
    if isinstance(group, PlacementGroup):
        chosen |= set(placement_group_table(group)["bundles_to_node_id"].values())
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["NodeID"] in chosen
    }
