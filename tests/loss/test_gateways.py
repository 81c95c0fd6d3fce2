"""Gateways are replaced under load, and a frozen engine is reported to clients: Ray, Serve, HAProxy
and vLLM's front end are real, engines are scripted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.loss.gateway_moves import STREAM_S

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600 + 20 * STREAM_S


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("gateways")
    done = subprocess.run(
        [sys.executable, "-m", "tests.loss.gateway_moves", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((directory / "results.json").read_text())


def test_fleet_that_starts_refuses_no_request_once_an_engine_is_ready(results: Any) -> None:
    assert results["start"]["late refusals"] == 0
    assert results["start"]["answers"]["200"]


def test_rolling_update_of_gateways_cuts_no_stream_and_refuses_no_request(results: Any) -> None:
    update = results["update"]
    assert set(update["ends"]) == {"1000 data: [DONE]"}
    assert set(update["answers"]) == {"200"}
    assert update["seen"]["draining"], "an old gateway drains while it has streams"
    assert update["seen"]["fewest"] >= 1, "a new gateway is ready before an old one leaves"
    assert update["kept engines"]


def test_gateway_that_gets_sigterm_ends_its_streams_whole_or_with_an_error(results: Any) -> None:
    ends = results["terminate"]
    assert set(ends["whole"]) == {"1000 data: [DONE]"}
    assert ends["cut"]
    assert all("gateway_draining" in end for end in ends["cut"])


def test_frozen_engine_is_reported_to_clients_and_is_used_again(results: Any) -> None:
    freeze = results["freeze"]
    status, body, headers = freeze["waiting"]
    assert (status, body["error"]["code"]) == (503, "no_engine")
    assert "retry-after" in headers
    assert freeze["ready"] == freeze["refused"] == 503
    assert freeze["refused_s"] < freeze["waited_s"]
