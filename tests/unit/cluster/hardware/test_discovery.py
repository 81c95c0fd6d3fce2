from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.cluster.hardware.discovery import ClusterMachines, from_kubernetes, from_ray
from qwenfleet.cluster.plan_errors import PlanError


def ray_node(
    host: str, resources: dict[str, float] | None = None, *, alive: bool = True
) -> dict[str, Any]:
    """A node as in `ray.nodes()`, reduced to little more than the fields that are read."""
    there = {"CPU": 8.0, **(resources or {})}
    return {"Alive": alive, "NodeManagerHostname": host, "Resources": there}


H100 = {"GPU": 8.0, "accelerator_type:H100": 1.0}
MI300X = {"GPU": 8.0, "accelerator_type:AMD-Instinct-MI300X-OAM": 1.0}


def test_rays_nodes_of_one_kind_are_counted_together() -> None:
    nodes = [ray_node("head"), ray_node("a", H100), ray_node("b", H100)]
    found = from_ray([*nodes, ray_node("c", MI300X), ray_node("d", H100, alive=False)])
    assert [kind.name for kind in found.kinds] == ["2 x 8 x H100", "8 x MI300X"]
    assert found.skipped == ()


def test_nodes_of_one_kind_and_two_sizes_are_two_kinds() -> None:
    found = from_ray([ray_node("a", H100), ray_node("b", {**H100, "GPU": 4.0})])
    assert [kind.name for kind in found.kinds] == ["8 x H100", "4 x H100"]


def test_unknown_gpus_are_listed_by_host() -> None:
    laptop = {"GPU": 1.0, "accelerator_type:T4": 1.0}
    found = from_ray([ray_node("a", H100), ray_node("b", laptop), ray_node("c", {"GPU": 2.0})])
    assert found.skipped == ("b (T4)", "c (GPUs without a type in Ray)")


def kube_node(
    name: str,
    product: str | None,
    gpus: str = "8",
    *,
    vendor: str = "nvidia",
    ready: str = "True",
    cordoned: bool = False,
) -> dict[str, Any]:
    """A node as in the Kubernetes API, reduced to the fields that are read."""
    label = {"nvidia": "nvidia.com/gpu.product", "amd": "amd.com/gpu.product-name"}[vendor]
    return {
        "metadata": {"name": name, "labels": {label: product} if product else {}},
        "spec": {"unschedulable": True} if cordoned else {},
        "status": {
            "allocatable": {"cpu": "96", f"{vendor}.com/gpu": gpus},
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": ready},
            ],
        },
    }


def test_kubernetes_nodes_are_known_by_their_product_label() -> None:
    found = from_kubernetes(
        [
            kube_node("a", "NVIDIA-H100-80GB-HBM3"),
            kube_node("b", "AMD_Instinct_MI300X_OAM", vendor="amd"),
            kube_node("c", "AMD_Instinct_MI300X_OAM", vendor="amd"),
            kube_node("cpu", None, "0"),
        ]
    )
    assert [kind.name for kind in found.kinds] == ["2 x 8 x MI300X", "8 x H100"]


def test_unusable_kubernetes_nodes_are_listed_with_the_reason() -> None:
    found = from_kubernetes(
        [
            kube_node("a", "NVIDIA-H200", ready="Unknown"),
            kube_node("b", "NVIDIA-H200", cordoned=True),
            kube_node("c", "Tesla-T4"),
            kube_node("d", None, vendor="amd"),
        ]
    )
    assert found.kinds == ()
    assert found.skipped == (
        "a (not ready)",
        "b (cordoned)",
        "c (Tesla-T4)",
        "d (no label amd.com/gpu.product-name)",
    )


def test_one_kind_can_be_selected() -> None:
    both = from_ray([ray_node("a", H100), ray_node("b", MI300X)])
    assert [kind.name for kind in both.only("mi300x").kinds] == ["8 x MI300X"]
    assert both.only(None) == both


@pytest.mark.parametrize(
    ("there", "wanted", "reported"),
    [
        (from_ray([ray_node("a", H100)]), "H200", "the cluster has 8 x H100, and no H200"),
        (from_ray([ray_node("a")]), None, "has no node with known GPUs"),
        (ClusterMachines((), ("b (T4)",)), None, r"Skipped: b \(T4\)"),
    ],
)
def test_a_cluster_without_the_wanted_machines_is_refused_with_what_it_has(
    there: ClusterMachines, wanted: str | None, reported: str
) -> None:
    with pytest.raises(PlanError, match=reported):
        there.only(wanted)
