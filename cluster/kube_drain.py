"""The Kubernetes side of `qwenfleet drain --node`: which pods a node has, and its cordon."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qwenfleet.cluster import kube_objects
from qwenfleet.cluster.errors import DrainRefused, KubernetesError
from qwenfleet.cluster.kube import Kube
from qwenfleet.cluster.kube_objects import CLUSTER_LABEL, KubePod
from qwenfleet.cluster.kube_query import Query

NEAREST = 3


@dataclass(frozen=True)
class NodeFleet:
    """One RayCluster's pods on a node, and the way to its Ray."""

    ray_cluster: str
    pods: tuple[KubePod, ...]
    """On the node."""
    head: KubePod | None
    """Wherever it runs; None when it does not."""


def find(kube: Kube, node: str) -> list[NodeFleet]:
    """The RayClusters of the namespace that have pods on a node. Raises DrainRefused when there is
    no such node, with the nearest names; KubernetesError."""
    names = [kube_objects.node(tree).name for tree in kube.items(Query("nodes"))]
    if node not in names:
        raise DrainRefused(f"there is no node '{node}'", nearest(node, names))
    query = Query("pods", kube.namespace, labels=CLUSTER_LABEL)
    return on_node(node, [kube_objects.pod(tree) for tree in kube.items(query)])


def nearest(name: str, names: Sequence[str]) -> str:
    """A sentence with the names that are most like one that is not there."""
    close = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(sorted(close))}?"
    more = f" and {len(names) - NEAREST} more" if len(names) > NEAREST else ""
    return f"There are: {', '.join(sorted(names)[:NEAREST]) or 'none'}{more}."


def on_node(node: str, pods: Iterable[KubePod]) -> list[NodeFleet]:
    alive = [pod for pod in pods if pod.phase == "Running" and pod.address]
    clusters = sorted({pod.ray_cluster for pod in alive if pod.node == node})
    return [
        NodeFleet(
            cluster,
            tuple(p for p in alive if p.ray_cluster == cluster and p.node == node),
            next((p for p in alive if p.ray_cluster == cluster and p.is_head), None),
        )
        for cluster in clusters
    ]


def warnings(fleet: NodeFleet) -> list[str]:
    """What a drain of engines does not save."""
    if fleet.head is not None and fleet.head in fleet.pods:
        return [
            f"the head of {fleet.ray_cluster}, {fleet.head.name}, runs on this node: when it goes, "
            "so does that Ray cluster, unless GCS fault tolerance is on"
        ]
    return []


def inner_command(fleet: NodeFleet, deadline_s: float, is_forced: bool) -> list[str]:
    """What moves the streams, run where that Ray cluster is reached: in its head pod."""
    return [
        *("python", "-m", "qwenfleet.deployments.host_drain"),
        *("--deadline", f"{deadline_s:g}"),
        *(["--force"] if is_forced else []),
        *(pod.address for pod in fleet.pods),
    ]


def by_hand(fleet: NodeFleet, node: str, command: Sequence[str]) -> str:
    """The sentence that says how to do the same with kubectl."""
    head = fleet.head
    where = f"-n {head.namespace} {head.name} -c {head.container}" if head else "HEAD_POD"
    return f"Run `kubectl exec {where} -- {shlex.join(command)}`, then `kubectl cordon {node}`."


def cordon(kube: Kube, node: str, *, is_trial: bool = False) -> None:
    """Let Kubernetes put no pod there any more, or only see whether we may. Raises
    KubernetesError."""
    kube.patch(Query("nodes"), node, {"spec": {"unschedulable": True}}, is_trial=is_trial)


def run(
    kube: Kube,
    node: str,
    *,
    deadline_s: float,
    is_forced: bool,
    move: Callable[[NodeFleet, Sequence[str]], int],
    say: Callable[[str], None],
) -> None:
    """Move the streams off the node's engines with `move`, which runs the inner command and returns
    its exit status, then cordon the node.

    Raises DrainRefused when an engine did not go, and then the node is as it was; KubernetesError,
    before any stream moves when we may not cordon.
    """
    fleets = find(kube, node)
    cordon(kube, node, is_trial=True)
    if not fleets:
        say(f"no Ray pod of namespace {kube.namespace} runs on {node}")
    for fleet in fleets:
        for warning in warnings(fleet):
            say(f"note: {warning}")
        command = inner_command(fleet, deadline_s, is_forced)
        if fleet.head is None:
            raise DrainRefused(
                f"RayCluster {fleet.ray_cluster} has no running head, so nobody can be told",
                f"Wait for it, or cordon the node anyway: `kubectl cordon {node}`.",
            )
        try:
            status = move(fleet, command)
        except KubernetesError as error:
            raise KubernetesError(
                error.problem,
                f"{error.remedy} {by_hand(fleet, node, command)}",
                error.api_status,
            ) from error
        if status:
            raise DrainRefused(
                f"node {node} is not cordoned: the drain in pod {fleet.head.name} failed",
                "See above why; --force drains even the last engine of a model.",
            )
    cordon(kube, node)
    say(f"{node} is cordoned; `kubectl uncordon {node}` takes that back")
