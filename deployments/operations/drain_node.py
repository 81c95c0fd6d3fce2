"""`qwenfleet drain --node`: through the Kubernetes API, or through a Ray cluster on this host."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence

from qwenfleet.cluster.errors import DrainRefused, KubernetesError
from qwenfleet.cluster.kube import exec as kube_exec
from qwenfleet.cluster.kube import node_pods
from qwenfleet.cluster.kube.client import Kube, connect
from qwenfleet.cluster.kube.node_pods import ClusterPods
from qwenfleet.deployments.operations import drain_hosts
from qwenfleet.deployments.operations.drain import GRACE_S


def run(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Drain and cordon a node. Raises DrainRefused, KubernetesError, and FleetNotFound with
    `--address`."""
    client = connect(options.context, options.namespace)
    limit_s = options.deadline + 2 * GRACE_S

    def move(cluster: ClusterPods, command: Sequence[str]) -> int:
        if options.address is None:
            assert cluster.head is not None  # `drain_node` has checked it
            return kube_exec.run(client, cluster.head, command, say=say, limit_s=limit_s)
        drain_hosts.run(
            [pod.address for pod in cluster.pods],
            options.address,
            deadline_s=options.deadline,
            is_forced=options.force,
            say=say,
        )
        return 0

    drain_node(
        client,
        options.node,
        deadline_s=options.deadline,
        is_forced=options.force,
        move=move,
        say=say,
    )


def drain_node(
    client: Kube,
    node: str,
    *,
    deadline_s: float,
    is_forced: bool,
    move: Callable[[ClusterPods, Sequence[str]], int],
    say: Callable[[str], None],
) -> None:
    """Move the streams off the node's engines with `move`, which runs the inner command and returns
    its exit status, then cordon the node.

    Raises DrainRefused when an engine did not stop; the node is then unchanged. Raises
    KubernetesError, before any stream moves, when cordoning is not allowed.
    """
    clusters = node_pods.find(client, node)
    node_pods.cordon(client, node, is_trial=True)
    if not clusters:
        say(f"no Ray pod in namespace {client.namespace} runs on {node}")
    for cluster in clusters:
        for warning in warnings(cluster):
            say(f"note: {warning}")
        command = inner_command(cluster, deadline_s, is_forced)
        if cluster.head is None:
            raise DrainRefused(
                f"RayCluster {cluster.ray_cluster} has no running head to drain its engines",
                f"Wait for it, or cordon the node anyway: `kubectl cordon {node}`.",
            )
        try:
            status = move(cluster, command)
        except KubernetesError as error:
            raise KubernetesError(
                error.problem,
                f"{error.remedy} {by_hand(cluster, node, command)}",
                error.api_status,
            ) from error
        if status:
            raise DrainRefused(
                f"node {node} is not cordoned: the drain in pod {cluster.head.name} failed",
                "See the output above; --force drains even the last engine of a model.",
            )
    node_pods.cordon(client, node)
    say(f"{node} is cordoned; `kubectl uncordon {node}` undoes that")


def warnings(cluster: ClusterPods) -> list[str]:
    """Return what draining the engines does not protect."""
    if cluster.head is not None and cluster.head in cluster.pods:
        return [
            f"the head of {cluster.ray_cluster}, {cluster.head.name}, runs on this node: if it "
            "stops, the Ray cluster stops too, unless GCS fault tolerance is on"
        ]
    return []


def inner_command(cluster: ClusterPods, deadline_s: float, is_forced: bool) -> list[str]:
    """Return the command that moves the streams; it runs in the head pod of the Ray cluster."""
    return [
        *("python", "-m", drain_hosts.__name__),
        *("--deadline", f"{deadline_s:g}"),
        *(["--force"] if is_forced else []),
        *(pod.address for pod in cluster.pods),
    ]


def by_hand(cluster: ClusterPods, node: str, command: Sequence[str]) -> str:
    """Return the sentence that says how to do the same with kubectl."""
    head = cluster.head
    where = f"-n {head.namespace} {head.name} -c {head.container}" if head else "HEAD_POD"
    return f"Run `kubectl exec {where} -- {shlex.join(command)}`, then `kubectl cordon {node}`."
