"""What a frame costs a gateway: every state is reached and timed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from qwenfleet.deployments.telemetry import instruments
from qwenfleet.loadtest import __main__ as loadtest
from qwenfleet.loadtest import dispatch_cost
from qwenfleet.loadtest.dispatch_cost import FrameCost


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    logger = logging.getLogger("qwenfleet")
    level = logger.level
    yield
    logger.setLevel(level)


class Instrument:
    """One of Ray's, which work in its workers only."""

    def inc(self, *_: Any) -> None: ...

    def record(self, *_: Any, **__: Any) -> None: ...


def test_each_state_of_the_requests_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruments, "_instrument", lambda _: Instrument())
    monkeypatch.setattr(dispatch_cost, "FRAMES", 20)
    lines = dispatch_cost.measure(engines=3, requests=20).splitlines()
    assert lines[0] == "| requests, 3 engines | state | CPU per frame, us: p50 | p99 |"
    rows = [line.split(" | ") for line in lines[2:]]
    assert [row[0] for row in rows] == ["| 20"] * 4
    assert len({row[1] for row in rows}) == 4
    assert all(float(row[2]) > 0 for row in rows)


def test_the_command_prints_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = FrameCost("waiting", 7, 1e-6, 2e-6)
    monkeypatch.setattr(dispatch_cost, "measure", lambda: dispatch_cost.render(2, [cost]))
    assert loadtest.main(["dispatch"]) == 0
    assert "| 7 | waiting | 1.0 | 2 |" in capsys.readouterr().out
