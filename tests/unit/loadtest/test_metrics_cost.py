"""What metrics cost a gateway: the arithmetic, and that counting needs no fleet."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.deployments.telemetry import instruments
from qwenfleet.loadtest import metrics_cost
from qwenfleet.loadtest.metrics_cost import EventCost


def test_the_cores_are_those_of_tokens_requests_and_reports() -> None:
    cost = EventCost(token_s=1e-6, request_s=1e-5, report_s=1e-3)
    assert cost.cores(1000, 100) == pytest.approx(0.001 + 0.001 + 0.002)


def test_counting_takes_time_for_each_kind_of_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Instrument:
        _metric: Any = None

        def inc(self, *_: Any) -> None: ...

        set = observe = inc

        def record(self, *_: Any, **__: Any) -> None: ...

    instrument = Instrument()
    instrument._metric = instrument
    monkeypatch.setattr(instruments, "_instrument", lambda _: instrument)
    for name in ("TOKENS", "REQUESTS", "REPORTS"):
        monkeypatch.setattr(metrics_cost, name, 3)
    cost = metrics_cost.count()
    assert min(cost.token_s, cost.request_s, cost.report_s) > 0
