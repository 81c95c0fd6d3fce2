"""A plan for the nodes of a Kubernetes cluster, over HTTP; `test_client.py` has other failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cli.plan import kubernetes_nodes
from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.hardware.discovery import from_kubernetes

NODE: dict[str, Any] = {
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


def test_cluster_nodes_become_machines(kubernetes_api: Any) -> None:
    kubernetes_api.put("nodes", NODE)
    assert [kind.name for kind in from_kubernetes(kubernetes_nodes()).kinds] == ["8 x H200"]


def test_missing_permission_to_list_nodes_is_reported(kubernetes_api: Any) -> None:
    kubernetes_api.denied = {("list", "nodes")}
    with pytest.raises(KubernetesError, match="does not let you list nodes of the cluster"):
        kubernetes_nodes("test")


def test_a_pod_without_a_service_account_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(KubernetesError, match="the Kubernetes configuration names no cluster"):
        kubernetes_nodes()
