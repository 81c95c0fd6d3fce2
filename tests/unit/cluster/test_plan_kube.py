"""What the planner makes of a cluster's nodes, read over HTTP."""

from __future__ import annotations

from typing import Any

from qwenfleet.cluster.plan_kube import read_nodes
from qwenfleet.cluster.plan_machines import from_kubernetes

NODE = {
    "metadata": {
        "name": "gpu-1",
        "labels": {"nvidia.com/gpu.product": "NVIDIA-H200", "nvidia.com/gpu.count": "8"},
    },
    "spec": {"podCIDR": "10.0.0.0/24"},
    "status": {
        "allocatable": {"cpu": "190", "memory": "2Ti", "nvidia.com/gpu": "8"},
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}


def test_the_nodes_of_a_cluster_become_machines(kubernetes_api: Any) -> None:
    kubernetes_api.put("nodes", NODE)
    found = from_kubernetes(read_nodes())
    assert [kind.name for kind in found.kinds] == ["8 x H200"]
