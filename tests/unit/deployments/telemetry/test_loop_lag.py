"""The lag of an event loop is measured while it runs, and after it has stood still."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from qwenfleet.deployments.telemetry import loop_lag


async def test_the_lag_of_a_stall_is_noted_and_a_long_one_is_logged(
    eventually: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_lag, "LOGGED_S", 0.4)
    lags: list[float] = []
    watching = asyncio.create_task(loop_lag.watch(lags.append))
    await eventually(lambda: len(lags) >= 2)
    count = len(lags)
    with caplog.at_level(logging.WARNING):
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            pass
        await eventually(lambda: len(lags) > count)
    watching.cancel()
    assert max(lags[count:]) >= 0.6 - loop_lag.SAMPLE_S
    assert min(lags) >= 0
    (record,) = [r for r in caplog.records if r.message == "event loop stalled"]
    assert vars(record)["seconds"] >= 0.4
