"""GatewayMetrics: what a gateway counts, and how its events fare against the objectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from qwenfleet.cluster import metrics
from qwenfleet.cluster.metrics import Metric
from qwenfleet.cluster.slo import SloConfig
from qwenfleet.deployments.instruments import Instruments

NO_MODEL: Final = "none"
"""The `model` of a request that named none that is served: clients' strings are no labels."""
AVAILABILITY: Final = {
    "completed": "good",
    "unavailable": "bad",
    "failed": "bad",
    "timed_out": "bad",
    "engine_lost": "bad",
}
"""The verdict on a request, by its outcome; others are the client's doing."""


HEAD_STORES: Final = {"redis": True, "memory": False}
"""Values of QWENFLEET_HEAD_STORE, and whether Ray's state outlives its head there."""


class GatewayMetrics:
    """Durations are seconds. What comes with every token is summed up until `flush`."""

    def __init__(
        self, fleet: str, objectives: Mapping[str, SloConfig], head_store: str = ""
    ) -> None:
        """`head_store` is where Ray's head keeps the cluster's state, when somebody said so."""
        self._head_store = head_store
        self._instruments = Instruments(fleet)
        self._objectives = dict(objectives)
        self._sums: Counter[tuple[Metric, tuple[tuple[str, str], ...]]] = Counter()

    def begin(self) -> None:
        """Make the series of every model that is served."""
        for model in self._objectives:
            self._instruments.begin(model)

    def promise(self, objectives: Mapping[str, SloConfig]) -> None:
        """What is judged from now on, by model."""
        self._objectives = dict(objectives)

    def request_ended(self, model: str, outcome: str) -> None:
        self._instruments.add(metrics.REQUESTS, 1, {"model": model, "outcome": outcome})
        verdict = AVAILABILITY.get(outcome)
        if verdict is not None and model in self._objectives:
            self._judge(model, "availability", verdict)

    def rejected(self, model: str, reason: str) -> None:
        self._instruments.add(metrics.REJECTIONS, 1, {"model": model, "reason": reason})

    def completed(self, model: str, duration_s: float) -> None:
        self._instruments.observe(metrics.REQUEST_SECONDS, duration_s, {"model": model})

    def queued(self, model: str, wait_s: float) -> None:
        self._instruments.observe(metrics.QUEUE_SECONDS, wait_s, {"model": model})

    def first_token(self, model: str, ttft_s: float) -> None:
        self._instruments.observe(metrics.TTFT_SECONDS, ttft_s, {"model": model})
        is_good = ttft_s <= self._objectives[model].ttft_s
        self._judge(model, "ttft", "good" if is_good else "bad")

    def next_token(self, model: str, gap_s: float) -> None:
        self._instruments.observe(metrics.ITL_SECONDS, gap_s, {"model": model})
        is_good = gap_s <= self._objectives[model].inter_token_s
        self._judge(model, "inter_token", "good" if is_good else "bad")

    def tokens(self, model: str, *, prompt: int = 0, cached: int = 0, output: int = 0) -> None:
        labels = (("model", model),)
        self._sums[metrics.PROMPT_TOKENS, labels] += prompt
        self._sums[metrics.CACHED_TOKENS, labels] += cached
        self._sums[metrics.OUTPUT_TOKENS, labels] += output

    def routed(self, model: str, decision: str) -> None:
        self._instruments.add(metrics.ROUTING, 1, {"model": model, "decision": decision})

    def engine_lost(self, model: str, loss: str) -> None:
        self._instruments.add(metrics.ENGINE_LOSSES, 1, {"model": model, "loss": loss})

    def resumed(self, model: str, loss: str, gap_s: float) -> None:
        labels = {"model": model, "loss": loss}
        self._instruments.add(metrics.RESUMES, 1, labels)
        self._instruments.observe(metrics.RESUME_GAP_SECONDS, gap_s, labels)

    def drain_cut(self, model: str, requests: int) -> None:
        self._instruments.add(metrics.DRAIN_CUTS, requests, {"model": model})

    def level(self, model: str, *, in_progress: int, moving: int, engines: int) -> None:
        """Requests that a gateway works on, those of them that wait for an engine or for their turn
        to leave one, and engines that it can send more to."""
        self._instruments.set(metrics.IN_PROGRESS, in_progress, {"model": model})
        self._instruments.set(metrics.MOVING_REQUESTS, moving, {"model": model})
        self._instruments.set(metrics.USABLE_ENGINES, engines, {"model": model})

    def flush(self) -> None:
        """Report what was summed up, the objectives, and that this process is alive."""
        for (metric, labels), count in self._sums.items():
            self._instruments.add(metric, count, dict(labels))
        self._sums.clear()
        for model, slo in self._objectives.items():
            self._set_objective(model, "availability", slo.availability_ratio)
            self._set_objective(model, "ttft", slo.ttft_ratio, slo.ttft_s)
            self._set_objective(model, "inter_token", slo.inter_token_ratio, slo.inter_token_s)
            start = {"model": model, "slo": "start"}
            self._instruments.set(metrics.SLO_THRESHOLD, slo.start_s, start)
        if self._head_store in HEAD_STORES:
            is_safe = float(HEAD_STORES[self._head_store])
            self._instruments.set(metrics.HEAD_FAULT_TOLERANCE, is_safe, {})
        self._instruments.alive("gateway")

    def _judge(self, model: str, slo: str, verdict: str) -> None:
        labels = (("model", model), ("slo", slo), ("verdict", verdict))
        self._sums[metrics.SLO_EVENTS, labels] += 1

    def _set_objective(
        self, model: str, slo: str, ratio: float, seconds: float | None = None
    ) -> None:
        labels = {"model": model, "slo": slo}
        self._instruments.set(metrics.SLO_OBJECTIVE, ratio, labels)
        if seconds is not None:
            self._instruments.set(metrics.SLO_THRESHOLD, seconds, labels)
