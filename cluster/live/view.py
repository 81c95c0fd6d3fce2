"""Numbers that `qwenfleet top` shows, computed from the reports of the last minute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from qwenfleet.cluster import metrics
from qwenfleet.cluster.labels import EngineState
from qwenfleet.cluster.live.exposition import ProcessReport
from qwenfleet.cluster.live.history import REPORT_S, Change, History, Seen, change, quantile
from qwenfleet.cluster.metrics import Metric

RECENT_S: Final = REPORT_S / 2
"""Window of tokens per second: the last report only, because the mean of a minute lags."""
SILENT_S: Final = 1.5 * REPORT_S
SKEW_S: Final = 2 * REPORT_S
"""Lag that means that a clock is wrong: reports are older than this only if one was missed."""
NO_MODEL: Final = "none"
"""Value of the label `model` for requests that name no served model."""


@dataclass(frozen=True)
class Latency:
    """Percentiles in seconds; None without events."""

    p50_s: float | None
    p90_s: float | None


@dataclass(frozen=True)
class SloEvents:
    """Events of the last minute, judged by one objective."""

    good: float
    bad: float
    objective: float | None
    """Share of events that should be good."""

    @property
    def share(self) -> float | None:
        total = self.good + self.bad
        return self.good / total if total else None

    @property
    def is_broken(self) -> bool:
        return self.share is not None and self.share < (self.objective or 0.0)


@dataclass(frozen=True)
class ModelView:
    """Numbers of one model. Rates are None until a gateway has reported twice."""

    id: str
    ready: int
    engines: int
    running: float
    waiting: float
    moving: float
    prompt_tokens_per_s: float | None
    cached_share: float | None
    output_tokens_per_s: float | None
    requests_per_s: float | None
    ttft: Latency
    inter_token: Latency
    slo: Mapping[str, SloEvents]
    outcomes: Mapping[str, float]
    """Requests that ended in the last minute, by outcome."""
    rejections: Mapping[str, float]
    """Rejections in the last minute, by error code."""
    resumes: Mapping[str, float]
    losses: Mapping[str, float]

    @property
    def is_unknown(self) -> bool:
        """True for requests that name no served model."""
        return self.id == NO_MODEL and not self.engines


@dataclass(frozen=True)
class EngineView:
    id: str
    model: str
    state: str
    running: float
    waiting: float
    kv_usage: float
    age_s: float
    """Age of its last report."""
    replaces_drained: bool = False
    """Whether it starts in place of an engine that was drained."""

    @property
    def is_silent(self) -> bool:
        return self.age_s > SILENT_S


@dataclass(frozen=True)
class FleetView:
    name: str
    models: tuple[ModelView, ...]
    engines: tuple[EngineView, ...]
    gateways: int
    age_s: tuple[float, float] | None
    """Ages of the newest and the oldest last report; None without reports."""
    span_s: float
    """Time that rates and counts cover; 0 while there is only one report."""
    notes: tuple[str, ...] = field(default=())


def view(
    history: History, live: Iterable[ProcessReport], now_s: float, models: Sequence[str] = ()
) -> FleetView:
    """Compute the numbers. `live` are the reports of the last reading; `models` are always
    shown."""
    last = [history[report.process] for report in live]
    gateways = [seen for seen in last if seen[-1].report.role == "gateway"]
    names = dict.fromkeys(models)
    for seen in last:
        names |= dict.fromkeys(_values(seen[-1].report, "model"))
    traffic = _Traffic(history, gateways)
    if not any(traffic.counts(metrics.REQUESTS, NO_MODEL, "outcome").values()):
        names.pop(NO_MODEL, None)
    engines = tuple(
        engine for seen in last if (engine := _engine(seen[-1].report, now_s - seen[-1].at_s))
    )
    ages = [max(0.0, now_s - seen[-1].at_s) for seen in last]
    return FleetView(
        name=", ".join(sorted({seen[-1].report.fleet for seen in last})),
        models=tuple(_model(name, engines, traffic) for name in names),
        engines=tuple(sorted(engines, key=lambda e: (e.model, e.id))),
        gateways=len(gateways),
        age_s=(min(ages), max(ages)) if ages else None,
        span_s=max((c.seconds for c in traffic.changes), default=0.0),
        notes=(*_drains(engines), *_notes(last, len(gateways))),
    )


class _Traffic:
    """Counters of all gateways together."""

    def __init__(self, history: History, gateways: Sequence[tuple[Seen, ...]]) -> None:
        every = (change(seen) for seen in history.values() if seen[-1].report.role == "gateway")
        # including those that died in the last minute: their requests count
        self.changes = [c for c in every if c is not None]
        recent = (change(seen, RECENT_S) for seen in gateways)
        self.recent = [c for c in recent if c is not None]
        self.gauges = [seen[-1].report for seen in gateways]

    def counts(self, metric: Metric, model: str, label: str) -> dict[str, float]:
        """Increases in the last minute by the values of `label`, summed over gateways."""
        found: dict[str, float] = defaultdict(float)
        for by in self.changes:
            for labels, value in _of(by.by, metric.exported, model):
                found[labels.get(label, "")] += value
        return {name: count for name, count in sorted(found.items()) if count}

    def largest(self, metric: Metric, model: str, label: str) -> dict[str, float]:
        """The largest increase of any gateway, for events that every gateway counts."""
        found: dict[str, float] = {}
        for by in self.changes:
            for labels, value in _of(by.by, metric.exported, model):
                name = labels.get(label, "")
                found[name] = max(found.get(name, 0.0), value)
        return {name: count for name, count in sorted(found.items()) if count}

    def rate(self, metric: Metric, model: str, changes: Sequence[Change]) -> float | None:
        if not changes:
            return None
        return sum(
            value / by.seconds for by in changes for _, value in _of(by.by, metric.exported, model)
        )

    def latency(self, metric: Metric, model: str) -> Latency:
        buckets: dict[float, float] = defaultdict(float)
        for by in self.changes:
            for labels, value in _of(by.by, f"{metric.exported}_bucket", model):
                buckets[float(labels["le"])] += value
        return Latency(quantile(buckets, 0.5), quantile(buckets, 0.9))

    def verdicts(self, model: str) -> dict[str, SloEvents]:
        objectives: dict[str, float] = {}
        for report in self.gauges:
            for labels, value in _of(report.values, metrics.SLO_OBJECTIVE.exported, model):
                objectives[labels["slo"]] = value
        judged: dict[tuple[str, str], float] = defaultdict(float)
        for by in self.changes:
            for labels, value in _of(by.by, metrics.SLO_EVENTS.exported, model):
                judged[labels["slo"], labels["verdict"]] += value
        return {
            slo: SloEvents(judged[slo, "good"], judged[slo, "bad"], objectives.get(slo))
            for slo in metrics.CLOSED["slo"]
        }


def _model(name: str, every: Sequence[EngineView], traffic: _Traffic) -> ModelView:
    engines = [engine for engine in every if engine.model == name]
    moving = (
        value
        for report in traffic.gauges
        for _, value in _of(report.values, metrics.MOVING_REQUESTS.exported, name)
    )
    prompt = traffic.rate(metrics.PROMPT_TOKENS, name, traffic.changes)
    cached = traffic.rate(metrics.CACHED_TOKENS, name, traffic.changes)
    return ModelView(
        id=name,
        ready=sum(engine.state == EngineState.READY and not engine.is_silent for engine in engines),
        engines=len(engines),
        running=sum(engine.running for engine in engines),
        waiting=sum(engine.waiting for engine in engines),
        moving=sum(moving),
        prompt_tokens_per_s=traffic.rate(metrics.PROMPT_TOKENS, name, traffic.recent),
        cached_share=min(cached / prompt, 1.0) if prompt and cached is not None else None,
        output_tokens_per_s=traffic.rate(metrics.OUTPUT_TOKENS, name, traffic.recent),
        requests_per_s=traffic.rate(metrics.REQUESTS, name, traffic.changes),
        ttft=traffic.latency(metrics.TTFT_SECONDS, name),
        inter_token=traffic.latency(metrics.ITL_SECONDS, name),
        slo=traffic.verdicts(name),
        outcomes=traffic.counts(metrics.REQUESTS, name, "outcome"),
        rejections=traffic.counts(metrics.REJECTIONS, name, "reason"),
        resumes=traffic.counts(metrics.RESUMES, name, "loss"),
        losses=traffic.largest(metrics.ENGINE_LOSSES, name, "loss"),
    )


def _engine(report: ProcessReport, age_s: float) -> EngineView | None:
    """The engine of a process, which has one at most."""
    states = [
        dict(labels)
        for (name, labels), value in report.values.items()
        if name == metrics.ENGINE_STATE.exported and value
    ]
    if not states:
        return None
    labels = states[0]

    def gauge(metric: Metric) -> float:
        found = _of(report.values, metric.exported, labels["model"])
        return next((value for _, value in found), 0.0)

    return EngineView(
        id=labels["engine"],
        model=labels["model"],
        state=labels["state"],
        running=gauge(metrics.ENGINE_RUNNING),
        waiting=gauge(metrics.ENGINE_WAITING),
        kv_usage=gauge(metrics.ENGINE_KV_USAGE),
        age_s=max(0.0, age_s),
        replaces_drained=bool(gauge(metrics.ENGINE_REPLACES_DRAINED)),
    )


def _of(
    values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float], name: str, model: str
) -> Iterator[tuple[dict[str, str], float]]:
    for (series, labels), value in values.items():
        if series == name:
            found = dict(labels)
            if found.get("model") == model:
                yield found, value


def _values(report: ProcessReport, label: str) -> Iterator[str]:
    for _, labels in report.values:
        for name, value in labels:
            if name == label:
                yield value


def _drains(engines: Iterable[EngineView]) -> Iterator[str]:
    for engine in engines:
        if engine.is_silent:
            continue
        if engine.state == EngineState.DRAINING:
            yield f"engine {engine.id} of {engine.model} drains; another starts when it has stopped"
        elif engine.replaces_drained:
            yield f"engine {engine.id} of {engine.model} loads in place of one that was drained"


def _notes(last: Sequence[tuple[Seen, ...]], gateways: int) -> Iterator[str]:
    if last and not gateways:
        yield (
            "no gateway reports, so requests are probably not answered; `qwenfleet status` shows "
            "more"
        )
    skews: dict[str, float] = {}
    for seen in last:
        if len(seen) > 1:  # the age of a first report is unknown
            skew_s = seen[-1].report.clock_s - seen[-1].wall_s
            skews[seen[-1].report.node] = skew_s
    for node, skew_s in sorted(skews.items()):
        if skew_s > REPORT_S / 2 or skew_s < -SKEW_S:
            error = "fast" if skew_s > 0 else "slow"
            yield (
                f"the clock of {node or 'another machine'} is about {abs(skew_s):.0f} s {error} "
                "compared with this machine's; ages count from the arrival of reports"
            )
