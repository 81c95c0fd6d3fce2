"""Tests that gateways and engines report all listed metrics to Ray under their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cluster import metrics
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.slo import SloConfig
from qwenfleet.cluster.labels import Decision, Loss, Outcome, StartPhase
from qwenfleet.cluster.metrics import CLOSED, FLEET, METRICS, Metric
from qwenfleet.deployments.engine_host.engine_metrics import EngineMetrics, phases
from qwenfleet.deployments.ingress import errors
from qwenfleet.deployments.registry.actor import CountingRegistry
from qwenfleet.deployments.registry.records import EngineRecord, StartFailure
from qwenfleet.deployments.registry.stages import Stage
from qwenfleet.deployments.telemetry import instruments
from qwenfleet.deployments.telemetry.gateway_metrics import AVAILABILITY, NO_MODEL, GatewayMetrics
from qwenfleet.deployments.wire.frames import RankLoad

PLAIN = [metric for metric in METRICS.values() if metric.kind != "histogram"]
CODE = Path(instruments.__file__).parents[1]
SLO = SloConfig(ttft_s=2.0, ttft_ratio=0.9, inter_token_s=0.05, inter_token_ratio=0.9)


class Instrument:
    """Stands in for a Ray metric, including Ray's inner `_metric`."""

    def __init__(self, metric: Metric, reported: list[Any]) -> None:
        self.metric = metric
        self.reported = reported
        self._metric = self

    def _say(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == {FLEET, *self.metric.labels}
        assert tags.pop(FLEET) == "f"
        self.reported.append((self.metric.name, value, tags))

    set = observe = record = _say

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0  # Ray raises otherwise
        self._say(value, tags)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    reported: list[Any] = []
    monkeypatch.setattr(instruments, "_instrument", lambda metric: Instrument(metric, reported))
    return reported


def leaves(error: type) -> list[Any]:
    """Return the classes without subclasses: the ones that are raised."""
    below: list[type] = error.__subclasses__()
    return [leaf for each in below for leaf in leaves(each)] if below else [error]


def gateway() -> GatewayMetrics:
    return GatewayMetrics("f", {"coder": SLO}, "redis")


def of(reported: list[Any], metric: Metric) -> list[tuple[float, dict[str, str]]]:
    return [(value, tags) for name, value, tags in reported if name == metric.name]


def test_every_metric_is_reported_with_all_of_its_labels(reported: list[Any]) -> None:
    counts = gateway()
    counts.request_ended("coder", Outcome.COMPLETED, is_judged=True)
    counts.rejected("coder", "timeout")
    counts.completed("coder", 1.5)
    counts.queued("coder", 0.1)
    counts.first_token("coder", 0.5)
    counts.next_token("coder", 0.02)
    counts.tokens("coder", prompt=9, cached=8, output=7)
    counts.routed("coder", Decision.SENT)
    counts.engine_lost("coder", Loss.RESET)
    counts.resumed("coder", Loss.RESET, 0.2)
    counts.no_token("coder", 9.0)
    counts.drain_cut("coder", 1)
    counts.level("coder", in_progress=3, moving=1, engines=2)
    counts.lagged(0.2)
    counts.pressure("coder", rendering={"prompt": 1}, backlog_bytes=7)
    counts.flush()
    registry = CountingRegistry("f")
    registry.report_failure(StartFailure("e0", "coder", "no such file", None))
    engine = EngineMetrics("f", "engine-0")
    engine.orphans("coder", 2)
    stages = (Stage("loading the model", 0.0, 9.0),)
    record = EngineRecord("e1", "coder", "node-1", 7, "ready", running=2, stages=stages)
    engine.record(record)
    engine.draining(record, 1.0, 60.0)
    parts = re.compile(r"_(bucket|sum|count)$")
    assert {parts.sub("", name) for name, _, _ in reported} == set(METRICS)


def test_closed_label_values_match_the_code() -> None:
    assert AVAILABILITY.keys() < set(Outcome)
    codes = {error.code for error in leaves(errors.RequestError)}
    assert set(CLOSED["reason"]) == codes | {"app_failed", "invalid_request"}
    begun = {
        phase
        for name in ("engine", "vllm_adapter/core", "engine_host/scripted_core")
        for phase in re.findall(
            r"stages\.begin\(StartPhase\.(\w+)", (CODE / f"{name}.py").read_text()
        )
    }
    assert set(StartPhase.__members__) == begun | {"HELD"}


def test_every_counter_starts_at_zero(reported: list[Any]) -> None:
    gateway().begin()
    EngineMetrics("f", "engine-0").begin("coder")
    CountingRegistry("f").announce_engine(EngineRecord("e1", "coder", "node-1", 7, "starting"), 4)
    assert {value for _, value, _ in reported} == {0}
    counters = {metric.name for metric in METRICS.values() if metric.kind == "counter"}
    assert {name for name, _, _ in reported} == counters
    assert (metrics.REQUESTS.name, 0, {"model": "coder", "outcome": "failed"}) in reported
    assert (
        metrics.REJECTIONS.name,
        0,
        {"model": NO_MODEL, "reason": "invalid_api_key"},
    ) in reported


def test_failed_starts_are_counted_by_the_registry(reported: list[Any]) -> None:
    registry = CountingRegistry("f")
    registry.announce_engine(EngineRecord("e1", "coder", "node-1", 7, "starting"), 4)
    registry.report_failure(StartFailure("e1", "coder", "no such file", None))
    assert [value for value, _ in of(reported, metrics.START_FAILURES)] == [0, 1]


def test_error_in_a_report_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    with instruments.reporting():
        raise UnicodeEncodeError("ascii", "\u00fc", 0, 1, "ordinal not in range(128)")
    assert "metrics report failed" in caplog.text


def test_request_without_tokens_counts_none(reported: list[Any]) -> None:
    counts = gateway()
    counts.tokens("coder", prompt=3, cached=0, output=0)
    assert not reported
    counts.flush()
    counts.flush()
    assert of(reported, metrics.PROMPT_TOKENS) == [(3, {"model": "coder"})]
    assert not of(reported, metrics.OUTPUT_TOKENS)


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome.COMPLETED, "good"),
        (Outcome.UNAVAILABLE, "bad"),
        (Outcome.FAILED, "bad"),
        (Outcome.TIMED_OUT, "bad"),
        (Outcome.ENGINE_LOST, "bad"),
        (Outcome.REFUSED, None),
        (Outcome.NO_KEY, None),
        (Outcome.WRONG_KEY, None),
        (Outcome.DISCONNECTED, None),
    ],
)
def test_outcomes_caused_by_clients_are_not_judged(
    reported: list[Any], outcome: Outcome, verdict: str | None
) -> None:
    counts = gateway()
    counts.request_ended("coder", outcome, is_judged=True)
    counts.request_ended("coder", outcome, is_judged=False)
    counts.request_ended(NO_MODEL, outcome, is_judged=True)
    counts.flush()
    judged = [] if verdict is None else [verdict]
    assert [tags["verdict"] for _, tags in of(reported, metrics.SLO_EVENTS)] == judged


def test_histogram_is_reported_as_totals(reported: list[Any]) -> None:
    counts = gateway()
    for gap_s in (0.002, 0.004, 0.004, 7.0):
        counts.next_token("coder", gap_s)
    counts.flush()
    name = metrics.ITL_SECONDS.name
    buckets = {tags["le"]: value for n, value, tags in reported if n == f"{name}_bucket"}
    assert list(buckets) == [*(str(bound) for bound in metrics.TOKEN_BUCKETS_S), "+Inf"]
    assert [buckets[le] for le in ("0.002", "0.005", "5.0", "+Inf")] == [1, 3, 3, 4]
    model = {"model": "coder"}
    assert (f"{name}_count", 4, model) in reported
    assert (f"{name}_sum", pytest.approx(7.01), model) in reported


def test_token_is_judged_by_the_current_objective(reported: list[Any]) -> None:
    counts = gateway()
    for seconds in (1.9, 2.0, 2.1):
        counts.first_token("coder", seconds)
    counts.next_token("coder", 0.06)
    counts.set_objectives({"coder": SLO.model_copy(update={"inter_token_s": 1.0})})
    counts.next_token("coder", 0.06)
    counts.flush()
    events = {(t["slo"], t["verdict"]): value for value, t in of(reported, metrics.SLO_EVENTS)}
    assert events == {
        ("ttft", "good"): 2,
        ("ttft", "bad"): 1,
        ("inter_token", "good"): 1,
        ("inter_token", "bad"): 1,
    }


def test_waiting_in_vain_is_bad_after_the_threshold(reported: list[Any]) -> None:
    counts = gateway()
    for waited_s in (1.9, 2.1):
        counts.no_token("coder", waited_s)
    for waited_s in (0.04, 0.06, 0.07):
        counts.no_next_token("coder", waited_s)
    counts.flush()
    events = {(t["slo"], t["verdict"]): value for value, t in of(reported, metrics.SLO_EVENTS)}
    assert events == {("ttft", "bad"): 1, ("inter_token", "bad"): 2}


def test_unchanged_histogram_is_reported_again_before_ray_drops_it(
    reported: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, shown = gateway(), []
    for now in (0.0, 1.0, 2.0, 5.0):
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        reported.clear()
        counts.flush()
        shown.append(any(name.endswith("_bucket") for name, _, _ in reported))
    assert shown == [True, False, False, True]


def test_objectives_are_reported_with_every_flush(reported: list[Any]) -> None:
    counts = gateway()
    counts.set_objectives({"coder": SLO.model_copy(update={"availability_ratio": 0.99})})
    counts.flush()
    ratios = {tags["slo"]: value for value, tags in of(reported, metrics.SLO_OBJECTIVE)}
    assert ratios == {"availability": 0.99, "ttft": 0.9, "inter_token": 0.9}
    seconds = {tags["slo"]: value for value, tags in of(reported, metrics.SLO_THRESHOLD)}
    assert seconds == {"ttft": 2.0, "inter_token": 0.05, "start": 1800.0}


@pytest.mark.parametrize(
    ("store", "expected"), [("redis", [1]), ("memory", [0]), ("", []), ("x", [])]
)
def test_head_fault_tolerance_is_reported_if_known(
    reported: list[Any], store: str, expected: list[float]
) -> None:
    GatewayMetrics("f", {"coder": SLO}, store).flush()
    assert [value for value, _ in of(reported, metrics.HEAD_FAULT_TOLERANCE)] == expected


def test_model_without_a_new_objective_keeps_its_own(reported: list[Any]) -> None:
    counts = gateway()
    counts.set_objectives({})
    counts.first_token("coder", 0.1)
    counts.flush()
    assert of(reported, metrics.SLO_EVENTS) == [
        (1, {"model": "coder", "slo": "ttft", "verdict": "good"})
    ]


def test_engine_is_in_one_state_at_a_time(reported: list[Any]) -> None:
    EngineMetrics("f", "engine-0").record(EngineRecord("e1", "coder", "node-1", 7, "draining"))
    states = {tags["state"]: value for value, tags in of(reported, metrics.ENGINE_STATE)}
    assert states == {"starting": 0.0, "ready": 0.0, "quarantined": 0.0, "draining": 1.0}


def test_engine_speed_is_the_sum_of_ranks_and_the_slowest_step(
    reported: list[Any],
) -> None:
    ranks = [
        RankLoad(prefill_tokens_per_s=1000.0, decode_step_s=0.02),
        RankLoad(dp_rank=1, prefill_tokens_per_s=500.0, decode_step_s=0.03),
    ]
    EngineMetrics("f", "engine-0").record(EngineRecord("e", "coder", "n", 7, "ready"), ranks)
    assert [value for value, _ in of(reported, metrics.ENGINE_PREFILL_RATE)] == [1500.0]
    assert [value for value, _ in of(reported, metrics.ENGINE_DECODE_STEP)] == [0.03]


def test_start_is_reported_by_phase_including_the_current_one() -> None:
    stages = (
        Stage("waiting", 0.0, 2.0, "node a has taint x"),
        Stage("waiting", 2.0, 3.0, "node b has taint y"),
        Stage("loading the model", 5.0),
    )
    assert phases(stages, lambda: 12.0) == {"waiting": 5.0, "loading the model": 7.0}


def test_orphans_only_rise(reported: list[Any]) -> None:
    engine = EngineMetrics("f", "engine-0")
    for total in (0, 2, 2, 5):
        engine.orphans("coder", total)
    assert [value for value, _ in of(reported, metrics.ORPHANS)] == [2, 3]


def test_objectives_of_a_model_replace_those_of_the_fleet() -> None:
    fleet = FleetConfig.model_validate(
        {
            "models": [{"id": "a"}, {"id": "b", "slo": {"availability_ratio": 0.9}}],
            "slo": {"availability_ratio": 0.95},
        }
    )
    assert {m: slo.availability_ratio for m, slo in fleet.objectives.items()} == {
        "a": 0.95,
        "b": 0.9,
    }


@pytest.mark.parametrize("metric", PLAIN, ids=lambda metric: metric.name)
def test_ray_accepts_every_metric_once_per_process(metric: Metric) -> None:
    instrument = instruments._instrument(metric)
    assert instruments._instrument(metric) is instrument
    assert instrument.info["name"] == metric.name
    assert instrument.info["tag_keys"] == (FLEET, *metric.labels)
