"""What a gateway and an engine count reaches Ray's metrics under the names of the list."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.cluster import metrics
from qwenfleet.cluster.metrics import METRICS, Metric
from qwenfleet.deployments import telemetry
from qwenfleet.deployments.exchange import Outcome
from qwenfleet.deployments.link import Loss
from qwenfleet.deployments.registry import EngineRecord
from qwenfleet.deployments.telemetry import EngineMetrics, GatewayMetrics


class Instrument:
    def __init__(self, metric: Metric, said: list[Any]) -> None:
        self.metric = metric
        self.said = said

    def _say(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.metric.labels)
        self.said.append((self.metric.name, value, tags))

    inc = set = observe = _say


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    said: list[Any] = []
    monkeypatch.setattr(telemetry, "_instrument", lambda metric: Instrument(metric, said))
    return said


def test_every_metric_is_reported_by_somebody_with_all_of_its_labels(said: list[Any]) -> None:
    gateway = GatewayMetrics()
    for outcome in Outcome:
        gateway.request_ended("coder", outcome.value)
    gateway.completed("coder", 1.5)
    gateway.first_token("coder", 0.5)
    gateway.next_token("coder", 0.02)
    gateway.tokens("coder", prompt=9, cached=8, output=7)
    for loss in Loss:
        gateway.engine_lost("coder", loss.value)
        gateway.resumed("coder", loss.value, 0.2)
    gateway.moving("coder", 3)
    EngineMetrics().orphans("coder", 2)
    EngineMetrics().record(EngineRecord("e1", "coder", "node-1", 7, "ready", running=2))
    assert {name for name, _, _ in said} == set(METRICS)


def test_a_request_without_tokens_counts_none(said: list[Any]) -> None:
    GatewayMetrics().tokens("coder", prompt=3, cached=0, output=0)
    assert said == [(metrics.PROMPT_TOKENS.name, 3, {"model": "coder"})]


def test_an_engine_is_in_one_state_at_a_time(said: list[Any]) -> None:
    EngineMetrics().record(EngineRecord("e1", "coder", "node-1", 7, "draining"))
    states = {
        tags["state"]: value for name, value, tags in said if name == metrics.ENGINE_STATE.name
    }
    assert states == {"starting": 0.0, "ready": 0.0, "quarantined": 0.0, "draining": 1.0}


def test_a_resume_is_counted_and_its_gap_is_measured_by_why_it_was_needed(said: list[Any]) -> None:
    GatewayMetrics().resumed("coder", Loss.RESET.value, 0.25)
    tags = {"model": "coder", "loss": "reset"}
    assert said == [
        (metrics.RESUMES.name, 1, tags),
        (metrics.RESUME_GAP_SECONDS.name, 0.25, tags),
    ]


def test_requests_on_the_move_are_a_level_and_orphans_only_rise(said: list[Any]) -> None:
    gateway, engine = GatewayMetrics(), EngineMetrics()
    for requests in (3, 0):
        gateway.moving("coder", requests)
    for total in (0, 2, 2, 5):
        engine.orphans("coder", total)
    tags = {"model": "coder"}
    assert said == [
        (metrics.MOVING_REQUESTS.name, 3, tags),
        (metrics.MOVING_REQUESTS.name, 0, tags),
        (metrics.ORPHANS.name, 2, tags),
        (metrics.ORPHANS.name, 3, tags),
    ]


@pytest.mark.parametrize("metric", list(METRICS.values()), ids=lambda metric: metric.name)
def test_ray_takes_every_metric_once_for_a_process(metric: Metric) -> None:
    instrument = telemetry._instrument(metric)
    assert telemetry._instrument(metric) is instrument
    assert instrument.info["name"] == metric.name
    assert instrument.info["tag_keys"] == metric.labels
