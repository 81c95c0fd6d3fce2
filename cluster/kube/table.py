"""Text table of a fleet's status in Kubernetes."""

from __future__ import annotations

from qwenfleet.cluster.columns import columns
from qwenfleet.cluster.kube.objects import KubeNode
from qwenfleet.cluster.kube.ray_services import ClusterSide, Complaint, RayServiceStatus
from qwenfleet.cluster.kube.status import KubeStatus

LONGEST = 60
"""Maximum length of a reason in characters; JSON has the full text."""


def table(status: KubeStatus) -> str:
    """Text for a terminal."""
    parts = [_services(status), _pods(status), _nodes(status), _gpus(status), _events(status)]
    lines = [f"namespace {status.namespace}"]
    for part in parts:
        if len(part) > 1:
            lines += ["", *columns(part)]
        if part is parts[0]:
            lines += [f"{s.name} is {s.progress}" for s in status.services if s.progress]
            lines += [_complaint(one) for s in status.services for one in s.complaints]
    if status.remarks:
        lines += ["", *(f"note: {remark}." for remark in status.remarks)]
    return "\n".join(lines)


def _services(status: KubeStatus) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("RAYSERVICE", "CONDITIONS", "ACTIVE", "PENDING", "APPLICATIONS")
    ]
    for service in status.services:
        rows.append(
            (
                service.name,
                _conditions(service),
                _side(service.active),
                _side(service.pending),
                ", ".join(f"{name} {state}" for name, state in service.applications) or "-",
            )
        )
    return rows


def _complaint(complaint: Complaint) -> str:
    what = complaint.deployment or complaint.application
    return f"{what} in {complaint.ray_cluster} is {complaint.state}: {complaint.reason}"


def _conditions(service: RayServiceStatus) -> str:
    """Conditions that are true, and the reason if Ready is not."""
    names = [c.type for c in service.conditions if c.is_true]
    ready = next((c for c in service.conditions if c.type == "Ready"), None)
    if ready is not None and not ready.is_true:
        names.insert(0, f"not ready ({_short(ready.reason or ready.message)})")
    return ", ".join(names) or "none yet"


def _side(side: ClusterSide | None) -> str:
    if side is None:
        return "-"
    return f"{side.ray_cluster} {side.state}"


def _pods(status: KubeStatus) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("POD", "GROUP", "NODE", "PHASE", "READY", "RESTARTS", "GPUS", "REASON")
    ]
    for pod in status.pods:
        rows.append(
            (
                pod.name,
                pod.group or ("head" if pod.is_head else "-"),
                pod.node or "-",
                pod.phase,
                "yes" if pod.is_ready else "no",
                str(pod.restarts),
                str(sum(number for _, number in pod.gpus)),
                _short(pod.reason) or "-",
            )
        )
    return rows


def _nodes(status: KubeStatus) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("NODE", "STATE", "GPUS", "TYPE", "TAINTS")]
    for node in status.nodes:
        rows.append(
            (
                node.name,
                _state(node),
                str(sum(number for _, number in node.gpus)),
                ", ".join(name for _, name in node.products) or "-",
                ", ".join(taint.key for taint in node.taints) or "-",
            )
        )
    return rows


def _state(node: KubeNode) -> str:
    ready = "ready" if node.is_ready else "not ready"
    return f"{ready}, cordoned" if node.is_cordoned else ready


def _gpus(status: KubeStatus) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("GPU", "NODES", "ALLOCATABLE", "REQUESTED", "BY THE FLEET")]
    for use in status.gpus:
        counts = (use.nodes, use.allocatable, use.requested, use.requested_by_fleet)
        rows.append((use.type, *map(str, counts)))
    return rows


def _events(status: KubeStatus) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("LAST EVENT", "TYPE", "REASON", "OBJECT", "MESSAGE")]
    for event in status.events:
        times = f" (x{event.count})" if event.count > 1 else ""
        rows.append((event.at, event.type, event.reason, event.about, event.message + times))
    return rows


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
