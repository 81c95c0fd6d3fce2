"""Status of a running fleet, as its registry reports it: as data and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qwenfleet.cluster.columns import columns
from qwenfleet.cluster.labels import EngineState
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.deployments.operations.attach import attached

if TYPE_CHECKING:  # Ray is imported after `attach` has set its environment
    from qwenfleet.deployments.registry.records import Snapshot


@dataclass(frozen=True)
class EngineStatus:
    id: str
    model: str
    node: str
    pid: int
    """The process of the EngineHost."""
    state: str
    running: int
    waiting: int
    kv_usage: float
    reason: str = ""
    """Why it is quarantined or draining."""
    pool: str = ""
    """Its pool of the model; empty if the model has no pools."""


@dataclass(frozen=True)
class GatewayStatus:
    id: str
    node: str
    pid: int
    ready: bool
    models: tuple[str, ...]
    requests: int


@dataclass(frozen=True)
class ModelStatus:
    id: str
    engines: int
    ready: int


@dataclass(frozen=True)
class FleetStatus:
    name: str
    url: str
    metrics_url: str
    models: tuple[ModelStatus, ...]
    gateways: tuple[GatewayStatus, ...]
    engines: tuple[EngineStatus, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read(running: RunningFleet) -> FleetStatus:
    """Read the status from the registry. Raises FleetNotFound when the Ray cluster does not
    answer."""
    with attached(running):
        from qwenfleet.deployments.registry import client

        return summarise(running, client.read(running.name))


def summarise(running: RunningFleet, snapshot: Snapshot) -> FleetStatus:
    """Convert a registry snapshot to a status."""
    engines = tuple(
        EngineStatus(
            id=e.id,
            model=e.model,
            node=e.node,
            pid=e.pid,
            state=e.state,
            running=e.running,
            waiting=e.waiting,
            kv_usage=e.kv_usage,
            reason=e.reason,
            pool=e.pool,
        )
        for e in sorted(snapshot.engines, key=lambda e: (e.model, e.pool, e.id))
    )
    return FleetStatus(
        name=running.name,
        url=running.url,
        metrics_url=f"http://127.0.0.1:{running.metrics_port}/metrics",
        models=tuple(
            ModelStatus(
                model,
                engines=sum(e.model == model for e in engines),
                ready=sum(e.model == model and e.state == EngineState.READY for e in engines),
            )
            for model in running.models
        ),
        gateways=tuple(
            GatewayStatus(g.id, g.node, g.pid, g.is_ready, g.models, g.requests)
            for g in sorted(snapshot.gateways, key=lambda g: g.id)
        ),
        engines=engines,
    )


def table(status: FleetStatus) -> str:
    """Render the status as tables for a terminal."""
    lines = [f"{status.name} at {status.url}, metrics at {status.metrics_url}", ""]
    lines += columns(
        [("MODEL", "ENGINES", "READY")]
        + [(m.id, str(m.engines), str(m.ready)) for m in status.models]
    )
    lines += [""]
    lines += columns(
        [("GATEWAY", "PID", "READY", "REQUESTS")]
        + [(g.id, str(g.pid), "yes" if g.ready else "no", str(g.requests)) for g in status.gateways]
    )
    lines += [""]
    lines += columns(
        [("ENGINE", "MODEL", "PID", "STATE", "RUNNING", "WAITING", "KV")]
        + [
            (
                e.id,
                f"{e.model} {e.pool}".rstrip(),
                str(e.pid),
                e.state,
                str(e.running),
                str(e.waiting),
                f"{e.kv_usage:.0%}",
            )
            for e in status.engines
        ]
    )
    lines += [f"{e.id} is {e.state}: {e.reason}" for e in status.engines if e.reason]
    return "\n".join(lines)
