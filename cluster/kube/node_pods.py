"""Which Ray pods a Kubernetes node has, and its cordon."""

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
    """One RayCluster's pods on a node, and the way to its Ray."""

    ray_cluster: str
    pods: tuple[KubePod, ...]
    """On the node."""
    head: KubePod | None
    """Wherever it runs; None when it does not."""


def find(kube: Kube, node: str) -> list[ClusterPods]:
    """The RayClusters of the namespace that have pods on a node. Raises DrainRefused when there is
    no such node, with the nearest names; KubernetesError."""
    names = [objects.node(tree).name for tree in kube.items(Query("nodes"))]
    if node not in names:
        raise DrainRefused(f"there is no node '{node}'", nearest(node, names))
    query = Query("pods", kube.namespace, labels=CLUSTER_LABEL)
    return on_node(node, [objects.pod(tree) for tree in kube.items(query)])


def nearest(name: str, names: Sequence[str]) -> str:
    """A sentence with the names that are most like one that is not there."""
    close = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(sorted(close))}?"
    more = f" and {len(names) - NEAREST} more" if len(names) > NEAREST else ""
    return f"There are: {', '.join(sorted(names)[:NEAREST]) or 'none'}{more}."


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
    """Let Kubernetes put no pod there any more, or only see whether we may. Raises
    KubernetesError."""
    kube.patch(Query("nodes"), node, {"spec": {"unschedulable": True}}, is_trial=is_trial)
