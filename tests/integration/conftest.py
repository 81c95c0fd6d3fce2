"""One real fleet for all integration tests: Ray, HAProxy, two gateways, vLLM engines on CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from qwenfleet.cluster.machine import free_ports

START_S = 480
"""Three vLLM engines and two gateways, each import of vLLM 9 s of CPU, on two busy cores."""
MAX_BODY_BYTES = 1_000_000

FLEET = """
name: integration
models:
  - id: smollm2
    source: smollm2-135m-instruct
    replicas: {{min: 1}}
  - id: tiny
    source: tiny-qwen3-moe
    replicas: {{min: 2}}
    max_model_len: 2048
  - id: scripted
    source: tiny-qwen3-moe
    engine: scripted
    max_model_len: 4096
    replicas: {{min: 2}}
    script: {{num_tokens: 3000, step_s: 0.02, tokens: [104, 105, 32]}}
gateway: {{replicas: 2, port: {port}, max_body_bytes: {max_body_bytes}, keep_alive_s: 1}}
"""


@dataclass
class Fleet:
    """The running fleet, as its users see it."""

    url: str
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: Path

    def cli(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `qwenfleet` as its user would."""
        return subprocess.run(
            [sys.executable, "-m", "qwenfleet.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        answer = self.cli("status", "--json")
        assert answer.returncode == 0, answer.stderr
        status: dict[str, Any] = json.loads(answer.stdout)
        return status

    def engines(self, model: str) -> list[dict[str, Any]]:
        return [engine for engine in self.status()["engines"] if engine["model"] == model]

    def metrics(self) -> str:
        return httpx.get(self.status()["metrics_url"], timeout=30).text

    def running(self, model: str) -> int:
        """Requests that the engines of a model work on."""
        return sum(engine["running"] + engine["waiting"] for engine in self.engines(model))

    def expect_idle(self, model: str) -> None:
        """Fails unless the engines stop working soon. An engine announces itself each second;
        reading that takes a process which imports Ray, on two cores that may be busy."""
        wait_until(lambda: self.running(model) == 0, 12, f"engines of {model} stop")


def wait_until(claim: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until the claim holds; fails with `what` when it does not in time."""
    give_up_at = time.monotonic() + timeout_s
    while not claim():
        if time.monotonic() > give_up_at:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.2)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Started by the command that users type; stopped by the Ctrl-C that they press."""
    directory = tmp_path_factory.mktemp("fleet")
    (port,) = free_ports(1, "127.0.0.1")
    config = directory / "fleet.yaml"
    config.write_text(FLEET.format(port=port, max_body_bytes=MAX_BODY_BYTES))
    environment = os.environ | {"XDG_STATE_HOME": str(directory / "state"), "PYTHONUNBUFFERED": "1"}
    log = directory / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwenfleet.cli", "serve", "--config", str(config)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    fleet = Fleet(f"http://127.0.0.1:{port}", process, environment, log)
    family: list[psutil.Process] = []
    try:
        _wait_for_start(fleet)
        yield fleet
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
        try:
            status = process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        _, left = psutil.wait_procs(family, timeout=5)
        for orphan in left:
            orphan.kill()
    assert status == 0, log.read_text()
    assert left == [], "processes outlived Ctrl-C"


def _wait_for_start(fleet: Fleet) -> None:
    def is_complete() -> bool:
        assert fleet.process.poll() is None, fleet.log.read_text()
        return "all 5 engines ready" in fleet.log.read_text()

    wait_until(is_complete, START_S, f"all engines ready; see {fleet.log}")
