"""Ray pods of a Kubernetes node, and the node's cordon."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qwenfleet.cluster.errors import DrainRefused
from qwenfleet.cluster.kube import objects
from qwenfleet.cluster.kube.client import Kube
from qwenfleet.cluster.kube.objects import CLUSTER_LABEL, KubePod
from qwenfleet.cluster.kube.query import Query

NEAREST = 3


@dataclass(frozen=True)
class ClusterPods:
    """One RayCluster's pods on a node, and the head pod that reaches its Ray."""

    ray_cluster: str
    pods: tuple[KubePod, ...]
    """Pods on the node."""
    head: KubePod | None
    """The head pod on any node; None if it is not running."""


def find(kube: Kube, node: str) -> list[ClusterPods]:
    """RayClusters of the namespace that have pods on a node. Raises KubernetesError, and
    DrainRefused with the closest names if the node does not exist."""
    names = [objects.node(tree).name for tree in kube.items(Query("nodes"))]
    if node not in names:
        raise DrainRefused(f"node '{node}' does not exist", nearest(node, names))
    query = Query("pods", kube.namespace, labels=CLUSTER_LABEL)
    return on_node(node, [objects.pod(tree) for tree in kube.items(query)])


def nearest(name: str, names: Sequence[str]) -> str:
    """A sentence with the existing names that are closest to `name`."""
    close = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(sorted(close))}?"
    more = f" and {len(names) - NEAREST} more" if len(names) > NEAREST else ""
    return f"Existing nodes: {', '.join(sorted(names)[:NEAREST]) or 'none'}{more}."


def on_node(node: str, pods: Iterable[KubePod]) -> list[ClusterPods]:
    alive = [pod for pod in pods if pod.phase == "Running" and pod.address]
    clusters = sorted({pod.ray_cluster for pod in alive if pod.node == node})
    return [
        ClusterPods(
            cluster,
            tuple(p for p in alive if p.ray_cluster == cluster and p.node == node),
            next((p for p in alive if p.ray_cluster == cluster and p.is_head), None),
        )
        for cluster in clusters
    ]


def cordon(kube: Kube, node: str, *, is_trial: bool = False) -> None:
    """Cordon a node; a trial only checks the permission to. Raises KubernetesError."""
    kube.patch(Query("nodes"), node, {"spec": {"unschedulable": True}}, is_trial=is_trial)
