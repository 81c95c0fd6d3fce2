"""The nodes of a Kubernetes cluster, for a plan."""

from __future__ import annotations

from typing import Any

from qwenfleet.cluster import kube, kube_query


def read_nodes(context: str | None = None) -> list[dict[str, Any]]:
    """Every node as the API server's JSON, by the kubeconfig's current context or the one named,
    or as the service account of the pod that this runs in. Raises KubernetesError."""
    return kube.connect(context).items(kube_query.Query("nodes"))
