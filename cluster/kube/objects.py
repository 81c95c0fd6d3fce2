"""Nodes and pods, read from the JSON of Kubernetes and KubeRay. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwenfleet.cluster.hardware.accelerators import Vendor

Tree = Mapping[str, Any]
CLUSTER_LABEL: Final = "ray.io/cluster"
GROUP_LABEL: Final = "ray.io/group"
TYPE_LABEL: Final = "ray.io/node-type"
"""KubeRay puts all three on each of its pods; the last is `head` or `worker`."""


@dataclass(frozen=True)
class Taint:
    key: str
    value: str = ""
    effect: str = ""


@dataclass(frozen=True)
class KubeNode:
    name: str
    is_ready: bool
    is_cordoned: bool
    is_deleted: bool
    """True if its deletion was requested."""
    taints: tuple[Taint, ...]
    gpus: tuple[tuple[Vendor, int], ...]
    """Allocatable GPUs by vendor, without zeros."""
    products: tuple[tuple[Vendor, str], ...]
    """Names of its GPUs, from labels."""

    def product(self, vendor: Vendor) -> str:
        """Name of a vendor's GPUs; empty without the label."""
        return dict(self.products).get(vendor, "")


@dataclass(frozen=True)
class KubePod:
    name: str
    namespace: str
    node: str
    """Empty until it is scheduled."""
    address: str
    phase: str
    reason: str
    """Reason that it is not running normally, as `kubectl get pods` shows it; empty if it is."""
    restarts: int
    is_ready: bool
    is_deleted: bool
    grace_s: float
    """Seconds from its deletion to SIGKILL."""
    sleep_s: float | None
    """Seconds from its deletion to SIGTERM, if its first container has a preStop sleep."""
    disruption: str
    """Reason of its condition DisruptionTarget; empty without one."""
    gpus: tuple[tuple[Vendor, int], ...]
    """Requested GPUs by vendor, without zeros."""
    ray_cluster: str
    group: str
    is_head: bool
    container: str
    """Its first container, which runs Ray in KubeRay's pods."""


def node(tree: Tree) -> KubeNode:
    metadata, spec, status = _part(tree, "metadata"), _part(tree, "spec"), _part(tree, "status")
    labels, allocatable = _part(metadata, "labels"), _part(status, "allocatable")
    return KubeNode(
        name=str(metadata.get("name", "?")),
        is_ready=_condition(status, "Ready").get("status") == "True",
        is_cordoned=bool(spec.get("unschedulable")),
        is_deleted="deletionTimestamp" in metadata,
        taints=tuple(
            Taint(str(t.get("key", "")), str(t.get("value") or ""), str(t.get("effect", "")))
            for t in spec.get("taints") or ()
        ),
        gpus=_gpus(allocatable),
        products=tuple(
            (vendor, str(labels[vendor.node_label]))
            for vendor in Vendor
            if vendor.node_label in labels
        ),
    )


def pod(tree: Tree) -> KubePod:
    metadata, spec, status = _part(tree, "metadata"), _part(tree, "spec"), _part(tree, "status")
    labels = _part(metadata, "labels")
    states = [s for s in status.get("containerStatuses") or () if isinstance(s, Mapping)]
    disruption = _condition(status, "DisruptionTarget")
    return KubePod(
        name=str(metadata.get("name", "?")),
        namespace=str(metadata.get("namespace", "")),
        node=str(spec.get("nodeName") or ""),
        address=str(status.get("podIP") or ""),
        phase=str(status.get("phase", "Unknown")),
        reason=_reason(metadata, status, states),
        restarts=sum(int(state.get("restartCount", 0)) for state in states),
        is_ready=_condition(status, "Ready").get("status") == "True",
        is_deleted="deletionTimestamp" in metadata,
        grace_s=float(metadata.get("deletionGracePeriodSeconds") or 0),
        sleep_s=_sleep(spec),
        disruption=str(disruption.get("reason") or "disruption")
        if disruption.get("status") == "True"
        else "",
        gpus=_requests(spec),
        ray_cluster=str(labels.get(CLUSTER_LABEL, "")),
        group=str(labels.get(GROUP_LABEL, "")),
        is_head=labels.get(TYPE_LABEL) == "head",
        container=next((str(c.get("name", "")) for c in spec.get("containers") or ()), ""),
    )


def _sleep(spec: Tree) -> float | None:
    first: Tree = next(iter(spec.get("containers") or ()), {})
    seconds = _part(_part(_part(first, "lifecycle"), "preStop"), "sleep").get("seconds")
    return None if seconds is None else float(seconds)


def _reason(metadata: Tree, status: Tree, states: list[Mapping[str, Any]]) -> str:
    if "deletionTimestamp" in metadata:
        return "Terminating"
    for state in states:
        for kind in ("waiting", "terminated"):
            detail = _part(_part(state, "state"), kind)
            if detail.get("reason"):
                return str(detail["reason"])
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        message = " ".join(str(scheduled.get("message") or "").split())
        return f"{scheduled.get('reason', 'Unschedulable')}: {message}".rstrip(": ")
    return str(status.get("reason") or "")


def _requests(spec: Tree) -> tuple[tuple[Vendor, int], ...]:
    """Requested GPUs: the sum over containers, or the largest init container if that is more."""
    found = []
    for vendor in Vendor:
        together = sum(_wanted(c, vendor) for c in spec.get("containers") or ())
        before = max((_wanted(c, vendor) for c in spec.get("initContainers") or ()), default=0)
        if count := max(together, before):
            found.append((vendor, count))
    return tuple(found)


def _wanted(container: Tree, vendor: Vendor) -> int:
    """GPUs that a container requests. For extended resources a limit implies the request."""
    resources = _part(container, "resources")
    name = vendor.kubernetes_resource
    asked = _part(resources, "requests").get(name, _part(resources, "limits").get(name, 0))
    return _count(asked)


def _gpus(resources: Tree) -> tuple[tuple[Vendor, int], ...]:
    counts = [(vendor, _count(resources.get(vendor.kubernetes_resource, 0))) for vendor in Vendor]
    return tuple((vendor, count) for vendor, count in counts if count)


def _count(quantity: Any) -> int:
    """Quantity of an extended resource, which is a whole number; 0 for anything else."""
    return int(quantity) if str(quantity).isdigit() else 0


def _condition(status: Tree, kind: str) -> Mapping[str, Any]:
    found = [c for c in status.get("conditions") or () if c.get("type") == kind]
    return found[0] if found else {}


def _part(tree: Tree, key: str) -> Mapping[str, Any]:
    """A nested object; empty if it is missing or null."""
    part = tree.get(key)
    return part if isinstance(part, Mapping) else {}
