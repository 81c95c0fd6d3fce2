"""Signs that a Kubernetes node or pod is about to be removed, and how soon. Pure.

A cordon alone (`node.kubernetes.io/unschedulable`) is not a sign: pods may stay for days, and if
`kubectl drain` follows, it deletes them, which is a sign. `karpenter.sh/disrupted` is not one
either: Karpenter removes that taint again if the replacement does not start (karpenter.sh,
"Disruption"). No engine starts on such a node. `kubernetes.azure.com/scalesetpriority` and
`aws-node-termination-handler/rebalance-recommendation` only mean that a node may be removed some
day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qwenfleet.cluster.kube.objects import KubeNode, KubePod

MARGIN_S: Final = 5.0
"""Part of the notice that is kept for the sign to arrive, and for the engine to deregister."""
SPOT_S: Final = 30.0
"""Notice that a spot or preemptible machine gets on Google Cloud and Azure: "Preemption process" in
Compute Engine's documentation, Preempt in Azure's "Scheduled Events". Not verified on either."""
NOTICES_S: Final = {
    # kubernetes/autoscaler, cluster-autoscaler/utils/taints/taints.go: ToBeDeletedTaint. It then
    # evicts with --max-graceful-termination-sec, 600 by default.
    "ToBeDeletedByClusterAutoscaler": 600.0,
    # GoogleCloudPlatform/k8s-node-termination-handler, main.go, and GKE's page "Manage node
    # disruption for GPUs and TPUs": an hour before maintenance, but half a minute for spot.
    "cloud.google.com/impending-node-termination": SPOT_S,
    # aws/aws-node-termination-handler, pkg/node/node.go. EC2 gives a spot instance two minutes
    # ("Spot Instance interruption notices"); the handler itself waits 120 s for the other two.
    "aws-node-termination-handler/spot-itn": 120.0,
    "aws-node-termination-handler/scheduled-maintenance": 120.0,
    "aws-node-termination-handler/asg-lifecycle-termination": 120.0,
    # AKS's page "Node auto-drain": put on a node that is redeployed or preempted.
    "remediator.kubernetes.azure.com/unschedulable": SPOT_S,
}
"""Taints that mean that the node will be removed, and the seconds from each to its end."""
CLOSING: Final = {"karpenter.sh/disrupted", "karpenter.sh/disruption"}
"""Taints that mean that nothing new should start; the second is Karpenter's before 1.0."""
DELETED_NODE_S: Final = SPOT_S
"""Notice of a node whose object is deleted or being deleted: its finalizers may already have
run."""


@dataclass(frozen=True)
class Departure:
    """A node or pod that is about to be removed."""

    reason: str
    notice_s: float
    """Seconds until its end."""

    @property
    def deadline_s(self) -> float:
        """Seconds that streams have to move to other engines."""
        return max(0.0, self.notice_s - MARGIN_S)


def of_node(node: KubeNode) -> Departure | None:
    """The departure of a node; of several signs the one with the shortest notice."""
    signs = [
        Departure(f"node {node.name} has the taint {taint.key}", NOTICES_S[taint.key])
        for taint in node.taints
        if taint.key in NOTICES_S
    ]
    if node.is_deleted:
        signs.append(Departure(f"node {node.name} is being deleted", DELETED_NODE_S))
    return min(signs, key=lambda sign: sign.notice_s, default=None)


def of_pod(pod: KubePod) -> Departure | None:
    """The departure of a pod. One that is being deleted has its grace period, or only its preStop
    sleep until SIGTERM. One with the condition DisruptionTarget is about to be deleted
    (kubernetes.io, "Pod disruption conditions").
    """
    if pod.is_deleted:
        notice_s = pod.grace_s if pod.sleep_s is None else min(pod.grace_s, pod.sleep_s)
        return Departure(f"pod {pod.name} is being deleted", notice_s)
    if pod.disruption:
        return Departure(f"pod {pod.name} is about to be removed ({pod.disruption})", SPOT_S)
    return None


def closed(node: KubeNode) -> str:
    """Reason that no engine should start on a node; empty if one may."""
    departure = of_node(node)
    if departure is not None:
        return departure.reason
    if node.is_cordoned:
        return f"node {node.name} is cordoned"
    taint = next((taint.key for taint in node.taints if taint.key in CLOSING), None)
    return f"node {node.name} has the taint {taint}" if taint else ""
