"""GatewayMetrics: counts a gateway's events and judges them by the objectives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from qwenfleet.cluster import metrics
from qwenfleet.cluster.config.slo import SloConfig
from qwenfleet.cluster.labels import Decision, Loss, Outcome
from qwenfleet.deployments.telemetry.instruments import Instruments
from qwenfleet.deployments.telemetry.tally import Histogram, Tally

NO_MODEL: Final = "none"
"""The `model` label of a request for an unknown model: clients' text must not become a label."""
AVAILABILITY: Final = {
    Outcome.COMPLETED: "good",
    Outcome.UNAVAILABLE: "bad",
    Outcome.FAILED: "bad",
    Outcome.TIMED_OUT: "bad",
    Outcome.ENGINE_LOST: "bad",
}
"""Verdict on a request by its outcome; other outcomes are caused by the client."""
HEAD_STORES: Final = {"redis": True, "rocksdb": True, "memory": False}
"""Values of QWENFLEET_HEAD_STORE, and whether Ray's state survives the head there."""

COUNTERS: Final = (
    metrics.REQUESTS,
    metrics.REJECTIONS,
    metrics.PROMPT_TOKENS,
    metrics.CACHED_TOKENS,
    metrics.OUTPUT_TOKENS,
    metrics.SLO_EVENTS,
    metrics.ROUTING,
    metrics.ENGINE_LOSSES,
    metrics.RESUMES,
    metrics.DRAIN_CUTS,
)
"""Counters of a gateway."""


class GatewayMetrics:
    """Counts one gateway's events. Durations are seconds. Events per request and token are summed
    until `flush`."""

    def __init__(
        self, fleet: str, objectives: Mapping[str, SloConfig], head_store: str = ""
    ) -> None:
        """`head_store`: where Ray's head keeps the cluster's state; empty if not known."""
        self._head_store = head_store
        self._instruments = Instruments(fleet)
        self._objectives = dict(objectives)
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._loop_lag = Histogram(metrics.LOOP_LAG.buckets)

    def begin(self) -> None:
        """Create the series of every configured model."""
        for metric in COUNTERS:
            for model in self._objectives:
                self._instruments.begin(metric, model)
        for metric in (metrics.REQUESTS, metrics.REJECTIONS):
            self._instruments.begin(metric, NO_MODEL)

    def set_objectives(self, objectives: Mapping[str, SloConfig]) -> None:
        """Replace the objectives of these models; other models keep theirs."""
        self._objectives |= objectives

    def request_ended(self, model: str, outcome: Outcome, *, is_judged: bool) -> None:
        self._instruments.add(metrics.REQUESTS, 1, {"model": model, "outcome": outcome.value})
        verdict = AVAILABILITY.get(outcome)
        if verdict is not None and is_judged and model in self._objectives:
            self._tallies[model].judged["availability"][verdict == "good"] += 1

    def rejected(self, model: str, reason: str) -> None:
        self._instruments.add(metrics.REJECTIONS, 1, {"model": model, "reason": reason})

    def completed(self, model: str, duration_s: float) -> None:
        self._tallies[model].requests.observe(duration_s)

    def queued(self, model: str, wait_s: float) -> None:
        self._tallies[model].queued.observe(wait_s)

    def first_token(self, model: str, ttft_s: float) -> None:
        tally = self._tallies[model]
        tally.ttft.observe(ttft_s)
        tally.judged["ttft"][ttft_s <= self._objectives[model].ttft_s] += 1

    def next_token(self, model: str, gap_s: float) -> None:
        tally = self._tallies[model]
        tally.gaps.observe(gap_s)
        tally.judged["inter_token"][gap_s <= self._objectives[model].inter_token_s] += 1

    def no_token(self, model: str, waited_s: float) -> None:
        """Count a request that ended without a token: a missed TTFT if it waited too long."""
        if waited_s > self._objectives[model].ttft_s:
            self._tallies[model].judged["ttft"][False] += 1

    def no_next_token(self, model: str, waited_s: float) -> None:
        """Count a stream that was cut `waited_s` after its last token: a missed gap if too long."""
        if waited_s > self._objectives[model].inter_token_s:
            self._tallies[model].judged["inter_token"][False] += 1

    def tokens(self, model: str, *, prompt: int = 0, cached: int = 0, output: int = 0) -> None:
        tally = self._tallies[model]
        tally.prompt += prompt
        tally.cached += cached
        tally.output += output

    def routed(self, model: str, decision: Decision) -> None:
        self._instruments.add(metrics.ROUTING, 1, {"model": model, "decision": decision.value})

    def engine_lost(self, model: str, loss: Loss) -> None:
        self._instruments.add(metrics.ENGINE_LOSSES, 1, {"model": model, "loss": loss.value})

    def resumed(self, model: str, loss: Loss, gap_s: float) -> None:
        self._instruments.add(metrics.RESUMES, 1, {"model": model, "loss": loss.value})
        self._tallies[model].resume_gaps[loss].observe(gap_s)

    def drain_cut(self, model: str, requests: int) -> None:
        self._instruments.add(metrics.DRAIN_CUTS, requests, {"model": model})

    def level(self, model: str, *, in_progress: int, moving: int, engines: int) -> None:
        """Set the gauges: requests in progress, those of them that wait for an engine or to move,
        and engines that accept new requests."""
        labels = {"model": model}
        self._instruments.set(metrics.IN_PROGRESS, in_progress, labels)
        self._instruments.set(metrics.MOVING_REQUESTS, moving, labels)
        self._instruments.set(metrics.USABLE_ENGINES, engines, labels)

    def lagged(self, lag_s: float) -> None:
        """Count one sample of the event loop's lag."""
        self._loop_lag.observe(lag_s)

    def pressure(self, model: str, *, rendering: Mapping[str, int], backlog_bytes: int) -> None:
        """Set the gauges of work that waits inside the gateway: for the threads of each pool, and
        for the links to engines."""
        for pool, waiting in rendering.items():
            labels = {"model": model, "pool": pool}
            self._instruments.set(metrics.RENDERING_REQUESTS, waiting, labels)
        self._instruments.set(metrics.LINK_BACKLOG, backlog_bytes, {"model": model})

    def flush(self) -> None:
        """Report the sums, the objectives, and that this process is alive."""
        for model, slo in self._objectives.items():
            self._flush_tally(model, self._tallies[model])
            self._flush_objectives(model, slo)
        self._instruments.show(metrics.LOOP_LAG, self._loop_lag, {})
        if self._head_store in HEAD_STORES:
            is_safe = float(HEAD_STORES[self._head_store])
            self._instruments.set(metrics.HEAD_FAULT_TOLERANCE, is_safe, {})
        self._instruments.alive("gateway")

    def _flush_tally(self, model: str, tally: Tally) -> None:
        labels = {"model": model}
        for metric, histogram in tally.histograms.items():
            self._instruments.show(metric, histogram, labels)
        for loss, histogram in tally.resume_gaps.items():
            gap = labels | {"loss": loss}
            self._instruments.show(metrics.RESUME_GAP_SECONDS, histogram, gap)
        for metric, count in (
            (metrics.PROMPT_TOKENS, tally.prompt),
            (metrics.CACHED_TOKENS, tally.cached),
            (metrics.OUTPUT_TOKENS, tally.output),
        ):
            self._instruments.add(metric, count, labels)
        for slo, counts in tally.judged.items():
            for verdict, count in zip(("bad", "good"), counts, strict=True):
                judged = labels | {"slo": slo, "verdict": verdict}
                self._instruments.add(metrics.SLO_EVENTS, count, judged)
        tally.clear()

    def _flush_objectives(self, model: str, slo: SloConfig) -> None:
        for name, ratio in (
            ("availability", slo.availability_ratio),
            ("ttft", slo.ttft_ratio),
            ("inter_token", slo.inter_token_ratio),
        ):
            self._instruments.set(metrics.SLO_OBJECTIVE, ratio, {"model": model, "slo": name})
        for name, seconds in (
            ("ttft", slo.ttft_s),
            ("inter_token", slo.inter_token_s),
            ("start", slo.start_s),
        ):
            self._instruments.set(metrics.SLO_THRESHOLD, seconds, {"model": model, "slo": name})
