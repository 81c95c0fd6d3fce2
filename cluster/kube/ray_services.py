"""RayServices, their upgrades, and events, read from JSON. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
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
QUIET: Final = {"HEALTHY", "RUNNING"}
"""States of Serve's deployments and applications whose message explains nothing that is wrong."""
COLORS: Final = re.compile(r"\x1b\[[0-9;]*m")
RAISED: Final = re.compile(r"^(?:ray\.exceptions\.)?([\w.]*?)(\w+(?:Error|Exception)): (.+)$", re.M)
"""The last line of a Python stack trace: module, class and message."""
LONGEST_REASON: Final = 1000


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
class Complaint:
    """What Serve says about a deployment, or a whole application, that is not healthy."""

    ray_cluster: str
    application: str
    deployment: str
    """Empty for the application."""
    state: str
    reason: str


@dataclass(frozen=True)
class RayServiceStatus:
    name: str
    conditions: tuple[ServiceCondition, ...]
    active: ClusterSide | None
    pending: ClusterSide | None
    endpoints: int
    applications: tuple[tuple[str, str], ...]
    """Serve applications and their states, of the active cluster or else of the first one."""
    complaints: tuple[Complaint, ...] = ()
    """The complaints of both clusters, those of the active one first."""

    def is_true(self, kind: str) -> bool:
        return any(c.is_true for c in self.conditions if c.type == kind)

    @property
    def progress(self) -> str:
        """Progress of a first start or of an upgrade in words; empty without one."""
        kind = next((k for k in CONDITIONS[1:4] if self.is_true(k)), None)
        if kind is None and self.pending is None:
            return ""
        if self.active is None and self.pending is not None and kind in (None, CONDITIONS[1]):
            return f"starting: {_share(self.pending)}"
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
    pending = status.get("pendingServiceStatus") or {}
    shown = active if active.get("rayClusterName") else pending
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
        pending=_side(pending),
        endpoints=int(status.get("numServeEndpoints") or 0),
        applications=tuple(
            (str(name), str(application.get("status", "UNKNOWN")))
            for name, application in sorted((shown.get("applicationStatuses") or {}).items())
        ),
        complaints=tuple(one for side in (active, pending) for one in _complaints(side)),
    )


def reason(message: str) -> str:
    """The sentence in a message of Serve that says what happened: the exception of ours that a
    replica raised, or else the last exception of its stack trace, or else the message."""
    text = COLORS.sub("", message)
    raised = [match.groups() for match in RAISED.finditer(text)]
    ours = [what for module, _, what in raised if module.startswith("qwenfleet.")]
    others = [f"{kind}: {what}" for _, kind, what in raised]
    found = (ours or others or [text])[-1]
    return " ".join(found.split())[:LONGEST_REASON]


def _complaints(side: Mapping[str, Any]) -> Iterator[Complaint]:
    for name, application in sorted((side.get("applicationStatuses") or {}).items()):
        found: list[Complaint] = []
        parts = application.get("serveDeploymentStatuses") or {}
        for deployment, tree in [*sorted(parts.items()), ("", application)]:
            state, message = str(tree.get("status") or ""), str(tree.get("message") or "")
            if message.strip() and state not in QUIET and (deployment or not found):
                found.append(
                    Complaint(
                        str(side.get("rayClusterName") or "?"),
                        str(name),
                        str(deployment),
                        state,
                        reason(message),
                    )
                )
        yield from found


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
