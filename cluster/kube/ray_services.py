"""RayServices, their upgrades, and events, read from JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

CONDITIONS: Final = (
    "Ready",
    "UpgradeInProgress",
    "RollbackInProgress",
    "Suspending",
    "Suspended",
)
"""Conditions of a RayService in KubeRay 1.7."""
EVENTS: Final = 10


@dataclass(frozen=True)
class ServiceCondition:
    type: str
    is_true: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class ClusterSide:
    """One of the two RayClusters of a RayService, during an upgrade."""

    ray_cluster: str
    state: str
    workers_ready: int
    workers_wanted: int
    capacity_percent: int | None
    """Target share of the service's capacity; None outside incremental upgrades."""
    traffic_percent: int | None


@dataclass(frozen=True)
class RayServiceStatus:
    name: str
    conditions: tuple[ServiceCondition, ...]
    active: ClusterSide | None
    pending: ClusterSide | None
    endpoints: int
    applications: tuple[tuple[str, str], ...]
    """Serve applications of the active cluster and their states."""

    def is_true(self, kind: str) -> bool:
        return any(c.is_true for c in self.conditions if c.type == kind)

    @property
    def progress(self) -> str:
        """Progress of an upgrade in words; empty without one."""
        kind = next((k for k in CONDITIONS[1:4] if self.is_true(k)), None)
        if kind is None and self.pending is None:
            return ""
        words = {"RollbackInProgress": "rolling back", "Suspending": "suspending"}
        action = words.get(kind or "", "upgrading")
        if self.pending is None:
            return action
        return f"{action}: {_share(self.pending)}" + (
            f"; {_share(self.active)}" if self.active is not None else ""
        )


@dataclass(frozen=True)
class EventLine:
    at: str
    """Time from the API: RFC 3339 in UTC."""
    type: str
    reason: str
    about: str
    message: str
    count: int


def ray_service(tree: Mapping[str, Any]) -> RayServiceStatus:
    status = tree.get("status") or {}
    active = status.get("activeServiceStatus") or {}
    found = {c.get("type"): c for c in status.get("conditions") or ()}
    return RayServiceStatus(
        name=str(tree["metadata"]["name"]),
        conditions=tuple(
            ServiceCondition(
                kind,
                found[kind].get("status") == "True",
                str(found[kind].get("reason") or ""),
                str(found[kind].get("message") or ""),
            )
            for kind in CONDITIONS
            if kind in found
        ),
        active=_side(active),
        pending=_side(status.get("pendingServiceStatus") or {}),
        endpoints=int(status.get("numServeEndpoints") or 0),
        applications=tuple(
            (str(name), str(application.get("status", "UNKNOWN")))
            for name, application in sorted((active.get("applicationStatuses") or {}).items())
        ),
    )


def last_events(trees: Iterable[Mapping[str, Any]], about: Iterable[str]) -> list[EventLine]:
    """The newest EVENTS of objects with these names, the oldest first."""
    names = set(about)
    lines = [
        EventLine(
            at=str(
                tree.get("lastTimestamp")
                or tree.get("eventTime")
                or tree.get("metadata", {}).get("creationTimestamp", "")
            ),
            type=str(tree.get("type", "")),
            reason=str(tree.get("reason", "")),
            about=f"{involved.get('kind', '?')}/{involved.get('name', '?')}",
            message=" ".join(str(tree.get("message", "")).split()),
            count=int(tree.get("count") or 1),
        )
        for tree in trees
        if (involved := tree.get("involvedObject") or {}).get("name") in names
    ]
    return sorted(lines, key=lambda line: line.at)[-EVENTS:]


def _side(tree: Mapping[str, Any]) -> ClusterSide | None:
    if not tree.get("rayClusterName"):
        return None
    cluster = tree.get("rayClusterStatus") or {}
    return ClusterSide(
        ray_cluster=str(tree["rayClusterName"]),
        state=str(cluster.get("state") or "not ready"),
        workers_ready=int(cluster.get("readyWorkerReplicas") or 0),
        workers_wanted=int(cluster.get("desiredWorkerReplicas") or 0),
        capacity_percent=tree.get("targetCapacity"),
        traffic_percent=tree.get("trafficRoutedPercent"),
    )


def _share(side: ClusterSide) -> str:
    shares = [
        f"{percent} % of the {what}"
        for percent, what in (
            (side.capacity_percent, "capacity"),
            (side.traffic_percent, "traffic"),
        )
        if percent is not None
    ]
    workers = f"{side.workers_ready} of {side.workers_wanted} workers"
    return f"{side.ray_cluster} has " + ", ".join([*shares, workers])
