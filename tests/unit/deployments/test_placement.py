"""Tests the resources of an engine on each of its nodes."""

from __future__ import annotations

import pytest
import ray

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.placement import actor_resources, node_bundle, wire_host


@pytest.mark.parametrize(
    ("accelerator", "layout", "bundle"),
    [
        (None, "TP2", {"CPU": 1}),
        ("H100", "TP8", {"CPU": 1, "GPU": 8, "accelerator_type:H100": 0.001}),
        ("H100", "TP8xDP2+EP16@2", {"CPU": 1, "GPU": 8, "accelerator_type:H100": 0.001}),
    ],
)
def test_bundle_has_all_gpus_of_one_node(
    accelerator: str | None, layout: str, bundle: dict[str, float]
) -> None:
    model = ModelConfig(id="m", accelerator=accelerator, layout=Layout.parse(layout))
    assert node_bundle(model) == bundle


def test_actor_uses_its_whole_bundle() -> None:
    assert actor_resources({"CPU": 1, "GPU": 8, "accelerator_type:H100": 0.001}) == {
        "num_cpus": 1,
        "num_gpus": 8,
        "resources": {"accelerator_type:H100": 0.001},
    }
    assert actor_resources({"CPU": 1}) == {"num_cpus": 1}


def test_engine_on_a_cluster_listens_where_gateways_of_other_nodes_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    assert wire_host(is_on_one_machine=False) == "10.0.0.7"
    assert wire_host(is_on_one_machine=True) == "127.0.0.1"
