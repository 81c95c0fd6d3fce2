"""Serve's controller dies: engines, gateways and streams go on, and another one takes them over."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import psutil
import pytest

from qwenfleet.deployments.operations.parts import CONTROLLER, title_of
from qwenfleet.deployments.operations.processes import of_fleet
from tests.two_nodes import Stream

pytestmark = pytest.mark.integration

TOKENS = 2000
FLEET = """
name: controller
models:
  - id: tiny
    source: tiny-qwen3-moe
    max_model_len: 4096
    kv_cache_gib: 0.1
    engine_args: {dtype: float32}
gateway: {port: {port}, keep_alive_s: 2}
"""
STREAM = {
    "model": "tiny",
    "prompt": "def reverse(text):",
    "max_tokens": TOKENS,
    "temperature": 0,
    "ignore_eos": True,
}
SHORT = STREAM | {"max_tokens": 8}
AFTERMATH_S = 30
"""A replica that the new controller cannot use is replaced within this time."""
START_S = 300


@pytest.fixture(scope="module")
def fleet(run_fleet, tmp_path_factory):
    with run_fleet(FLEET, 1, tmp_path_factory.mktemp("controller")) as fleet:
        yield fleet


def controllers(fleet):
    token = Path(fleet.environment["XDG_STATE_HOME"], "qwenfleet", f"{fleet.process.pid}.token")
    return [p for p in of_fleet(token) if title_of(p) == CONTROLLER.title]


def log_of(replica):
    """Return the lines of Serve's log of a replica."""
    (path,) = Path("/tmp/ray").glob(f"session_2*/logs/serve/replica_*{replica}.log")
    return [json.loads(line) for line in path.read_text().splitlines()]


def parts(fleet):
    """Return ids, processes and states of engines and gateways."""
    status = fleet.status()
    engines = [(engine["id"], engine["pid"], engine["state"]) for engine in status["engines"]]
    return engines, [(one["id"], one["pid"], one["ready"]) for one in status["gateways"]]


def complete(fleet):
    return httpx.post(f"{fleet.url}/v1/completions", json=SHORT, timeout=60)


def test_an_engine_logs_what_it_and_vllm_do_after_the_import(fleet):
    (engine,) = fleet.engines("tiny")
    messages = [line["message"] for line in log_of(engine["id"])]
    assert "engine ready" in messages
    assert any("Resolved architecture" in message for message in messages), "vLLM's own"


def test_streams_and_replicas_outlive_the_controller(fleet, gaps, expect):
    whole = Stream(fleet.url, STREAM)
    whole.join()
    fleet.expect_ready("tiny", 1)  # a busy machine may have made it wait
    before = parts(fleet)
    (controller,) = controllers(fleet)

    stream = Stream(fleet.url, STREAM)
    expect(lambda: len(stream.times) > 20, 60, "the stream begins")
    moment = time.monotonic()
    controller.kill()
    stream.join()
    gaps.setdefault("SIGKILL of Serve's controller", []).append(stream.gap_after(moment))
    assert stream.end == "data: [DONE]"
    assert stream.text == whole.text

    expect(lambda: len(controllers(fleet)) == 1, 60, "another controller")
    give_up_at = time.monotonic() + AFTERMATH_S
    while time.monotonic() < give_up_at:
        reply = complete(fleet)
        assert reply.status_code == 200, reply.text
        time.sleep(1)
    expect(lambda: parts(fleet) == before, 60, "the same engine and gateway, ready")


def test_the_next_controller_replaces_a_gateway_that_dies(fleet, expect):
    _, ((lost, pid, _),) = parts(fleet)
    psutil.Process(pid).kill()

    def is_replaced():
        _, gateways = parts(fleet)
        return [ready for id, _, ready in gateways if id != lost] == [True]

    expect(is_replaced, START_S, "another gateway")
    expect(lambda: complete(fleet).status_code == 200, 60, "HAProxy finds it")
