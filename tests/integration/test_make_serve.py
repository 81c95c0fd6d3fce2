"""Tests `make serve` as a new user types it, next to the shared test fleet; then Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.deployments.operations import processes

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
models:
  - id: scripted
    source: tiny-qwen3-moe
    engine: scripted
    max_model_len: 1024
    script: {{start_s: 30}}  # the gateway is up well before its engine
gateway: {{port: {port}}}
"""
START_S = 240


@pytest.fixture
def launched(tmp_path):
    """`make serve` in a process group of its own, as in a terminal; its URL and its log."""
    (port,) = free_ports(1, "127.0.0.1")
    config = tmp_path / "fleet.yaml"
    config.write_text(CONFIG.format(port=port))
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "--no-print-directory", "serve", f"ARGS=--config {config}"],
            cwd=ROOT,
            env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield process, f"http://127.0.0.1:{port}", log
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answer_of(url):
    try:
        return httpx.get(f"{url}/health/ready", timeout=10)
    except httpx.HTTPError:
        return None


def test_it_says_503_then_answers_and_ctrl_c_leaves_nothing(launched, tmp_path):
    process, url, log = launched
    refused = []
    give_up_at = time.monotonic() + START_S
    while (answer := answer_of(url)) is None or answer.status_code != 200:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up_at, log.read_text()
        if answer is not None and answer.status_code == 503:
            refused.append(answer)
        time.sleep(0.3)
    completion = httpx.post(
        f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 3}, timeout=60
    )
    (token,) = (tmp_path / "qwenfleet").glob("*.token")
    family = processes.of_fleet(token)
    while "ready: http" not in log.read_text():
        assert time.monotonic() < give_up_at, log.read_text()
        time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    status = process.wait(timeout=90)

    assert refused, "a gateway answers before it can serve"
    assert int(refused[0].headers["retry-after"]) > 0
    assert completion.status_code == 200
    assert len(family) > 5
    assert status in (0, -signal.SIGINT), log.read_text()  # make reports the signal as its own
    assert "stopped" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert processes.of_fleet(token) == []
    assert list((tmp_path / "qwenfleet").iterdir()) == []
