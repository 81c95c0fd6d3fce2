"""Nodes and pods from their JSON, even if parts of it are missing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.hardware.accelerators import Vendor
from qwenfleet.cluster.kube import objects
from qwenfleet.cluster.kube.objects import Taint

NODE: dict[str, Any] = {
    "metadata": {"name": "gpu-1", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
    "spec": {"unschedulable": True, "taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]},
    "status": {
        "allocatable": {"cpu": "96", "nvidia.com/gpu": "8", "amd.com/gpu": "0"},
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}


def test_a_node_is_read() -> None:
    node = objects.node(NODE)
    assert (node.name, node.is_ready, node.is_cordoned, node.is_deleted) == (
        "gpu-1",
        True,
        True,
        False,
    )
    assert node.gpus == ((Vendor.NVIDIA, 8),)
    assert node.product(Vendor.NVIDIA) == "NVIDIA-H100-80GB-HBM3"
    assert node.product(Vendor.AMD) == ""
    assert node.taints == (Taint("nvidia.com/gpu", "", "NoSchedule"),)


def pod(**status: Any) -> objects.KubePod:
    return objects.pod({"metadata": {"name": "p"}, "status": status})


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"phase": "Running"}, ""),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
            "ImagePullBackOff",
        ),
        ({"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]}, "OOMKilled"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes:\n 3 Insufficient nvidia.com/gpu.",
                    }
                ]
            },
            "Unschedulable: 0/3 nodes: 3 Insufficient nvidia.com/gpu.",
        ),
    ],
)
def test_the_reason_that_a_pod_does_not_run_is_read(status: dict[str, Any], reason: str) -> None:
    assert pod(**status).reason == reason


def test_restarts_of_all_containers_count() -> None:
    assert pod(containerStatuses=[{"restartCount": 2}, {"restartCount": 1}]).restarts == 3


@pytest.mark.parametrize(
    ("containers", "init", "gpus"),
    [
        ([{"limits": {"nvidia.com/gpu": "8"}}], [], ((Vendor.NVIDIA, 8),)),
        ([{"requests": {"amd.com/gpu": 4}}, {"requests": {"amd.com/gpu": "4"}}], [],
         ((Vendor.AMD, 8),)),
        ([{"limits": {"nvidia.com/gpu": "1"}}], [{"limits": {"nvidia.com/gpu": "2"}}],
         ((Vendor.NVIDIA, 2),)),
        ([{}], [], ()),
    ],
    ids=["limit is request", "containers add up", "the larger of before and together", "none"],
)  # fmt: skip
def test_gpus_are_counted_as_the_scheduler_counts_them(
    containers: list[Any], init: list[Any], gpus: Any
) -> None:
    spec = {
        "containers": [{"resources": resources} for resources in containers],
        "initContainers": [{"resources": resources} for resources in init],
    }
    assert objects.pod({"metadata": {"name": "p"}, "spec": spec}).gpus == gpus


def thinned(tree: Any, holes: list[bool]) -> Any:
    """A tree in which some branches are missing or null."""
    if not isinstance(tree, dict):
        return tree
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        if holes and holes.pop():
            if holes and holes.pop():
                kept[key] = None
            continue
        kept[key] = thinned(value, holes)
    return kept


@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_missing_parts_are_not_an_error(holes: list[bool]) -> None:
    full = NODE | {
        "spec": NODE["spec"] | {"containers": [{"name": "ray"}], "nodeName": "gpu-1"},
        "status": NODE["status"] | {"podIP": "10.0.0.1", "containerStatuses": []},
    }
    objects.node(thinned(full, list(holes)))
    objects.pod(thinned(full, list(holes)))
