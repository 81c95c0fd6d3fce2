"""Status of a running fleet: what its registry, Serve and its address answer, and who does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qwenfleet.cluster.columns import columns
from qwenfleet.cluster.errors import one_line
from qwenfleet.cluster.labels import EngineState, GatewayState
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.deployments.operations.readiness import Readiness

if TYPE_CHECKING:  # Ray is imported after `attach` has set its environment
    from qwenfleet.deployments.operations.failures import Deployed
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
    replaces: str = ""
    """While it starts: the drained engine in whose place it starts; empty if there is none."""


@dataclass(frozen=True)
class GatewayStatus:
    id: str
    node: str
    pid: int
    ready: bool
    models: tuple[str, ...]
    requests: int
    state: str = ""
    """A value of `GatewayState`; empty if the gateway does not report it."""
    reason: str = ""
    """Why it is draining."""


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
    http: str = ""
    """What the fleet's address answers to `/health/ready`: `ready`, or why requests fail."""
    problems: tuple[str, ...] = ()
    """Who does not answer, one sentence each: then the rest is incomplete."""
    last_failure: str = ""
    """The last failed start that no successful one followed."""
    awaited: tuple[str, ...] = ()
    """Drained engines whose replacements have not begun to start."""

    @property
    def is_complete(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(
    running: RunningFleet,
    snapshot: Snapshot | None,
    readiness: Readiness,
    deployments: Sequence[Deployed] = (),
    problems: Sequence[str] = (),
) -> FleetStatus:
    """Convert what was read to a status. Without a registry, the models' figures are Serve's."""
    engines = () if snapshot is None else _engines(snapshot)
    unanswered = (f"{running.url} does not answer",) if readiness.status == 0 else ()
    return FleetStatus(
        name=running.name,
        url=running.url,
        metrics_url=f"http://127.0.0.1:{running.metrics_port}/metrics",
        models=tuple(
            _of_serve(model, index, deployments)
            if snapshot is None
            else _of_registry(model, engines)
            for index, model in enumerate(running.models)
        ),
        gateways=() if snapshot is None else _gateways(snapshot),
        engines=engines,
        http=str(readiness),
        problems=(*problems, *unanswered),
        last_failure="" if snapshot is None else _last_failure(snapshot),
        awaited=() if snapshot is None else tuple(one.id for one in snapshot.awaited),
    )


def _engines(snapshot: Snapshot) -> tuple[EngineStatus, ...]:
    return tuple(
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
            replaces=e.replaces,
        )
        for e in sorted(snapshot.engines, key=lambda e: (e.model, e.pool, e.id))
    )


def _gateways(snapshot: Snapshot) -> tuple[GatewayStatus, ...]:
    return tuple(
        GatewayStatus(g.id, g.node, g.pid, g.is_ready, g.models, g.requests, g.state, g.reason)
        for g in sorted(snapshot.gateways, key=lambda g: g.id)
    )


def _of_registry(model: str, engines: Sequence[EngineStatus]) -> ModelStatus:
    of_model = [engine for engine in engines if engine.model == model]
    ready = sum(engine.state == EngineState.READY for engine in of_model)
    return ModelStatus(model, len(of_model), ready)


def _of_serve(model: str, index: int, deployments: Sequence[Deployed]) -> ModelStatus:
    name = f"engine-{index}"
    pools = [one for one in deployments if one.name == name or one.name.startswith(f"{name}-")]
    return ModelStatus(model, sum(one.replicas for one in pools), sum(one.running for one in pools))


def _last_failure(snapshot: Snapshot) -> str:
    if not snapshot.failures:
        return ""
    last = snapshot.failures[-1]
    of_model = f" of {last.model}" if last.model else ""
    log = f" (see {last.log_file})" if last.log_file else ""
    return f"{last.engine}{of_model}: {one_line(last.reason)}{log}"


def table(status: FleetStatus) -> str:
    """Render the status as tables for a terminal."""
    lines = [f"{status.name} at {status.url}, metrics at {status.metrics_url}"]
    lines += [f"HTTP: {status.http}", ""]
    lines += columns(
        [("MODEL", "ENGINES", "READY")]
        + [(m.id, str(m.engines), str(m.ready)) for m in status.models]
    )
    lines += [""]
    lines += columns(
        [("GATEWAY", "PID", "READY", "REQUESTS")]
        + [(g.id, str(g.pid), _ready(g), str(g.requests)) for g in status.gateways]
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
    lines += [f"{g.id} is {g.state}: {g.reason}" for g in status.gateways if g.reason]
    lines += [
        f"{e.id} is {e.state}: it replaces {e.replaces}, which was drained"
        for e in status.engines
        if e.replaces
    ]
    lines += [f"{id} was drained: its replacement has not begun to start" for id in status.awaited]
    if status.last_failure:
        lines += [f"last failed start: {status.last_failure}"]
    return "\n".join([*lines, *(f"problem: {problem}" for problem in status.problems)])


def _ready(gateway: GatewayStatus) -> str:
    is_plain = gateway.state in {"", GatewayState.READY}
    return ("yes" if gateway.ready else "no") if is_plain else gateway.state
