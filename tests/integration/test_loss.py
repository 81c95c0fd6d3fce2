"""An engine that dies: its streams end with an error at once, others take new work, Serve replaces
it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

pytestmark = pytest.mark.integration

STREAMS = 6
REPLACED_S = 240
LONG = {
    "model": "tiny", "max_tokens": 1000, "ignore_eos": True, "stream": True, "temperature": 0,
    "prompt": "x",
}  # fmt: skip


def stream_to_end(url, started):
    """All events of a stream, and when the last one came."""
    events = []
    with (
        httpx.Client(timeout=120) as client,
        client.stream("POST", f"{url}/v1/completions", json=LONG) as response,
    ):
        for line in response.iter_lines():
            if line:
                events.append(line)
                started.release()
    return events, time.monotonic()


def victim(fleet, kind):
    """An engine and the process of it to kill. Asked for before there is load: two engines at work
    leave two cores no time to answer."""
    engine = fleet.engines("tiny")[0]
    family = psutil.Process(engine["pid"]).children(recursive=True)
    if kind == "host":
        return engine["id"], engine["pid"], family
    children = psutil.Process(engine["pid"]).children()
    cores = [child.pid for child in children if "EngineCore" in " ".join(child.cmdline())]
    assert len(cores) == 1, [child.cmdline() for child in children]
    return engine["id"], cores[0], family


@pytest.mark.parametrize("kind", ["host", "core"])
def test_a_killed_engine_fails_cleanly_and_is_replaced(fleet, kind):
    engine, pid, family = victim(fleet, kind)
    started = threading.Semaphore(0)
    with ThreadPoolExecutor(STREAMS) as pool:
        futures = [pool.submit(stream_to_end, fleet.url, started) for _ in range(STREAMS)]
        for _ in range(STREAMS * 5):
            assert started.acquire(timeout=60)
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        fresh = httpx.post(
            f"{fleet.url}/v1/completions",
            json=LONG | {"stream": False, "max_tokens": 4},
            timeout=60,
        )
        results = [future.result(timeout=180) for future in futures]

    lost = [(events, ended_at) for events, ended_at in results if events[-2:-1] == ["event: error"]]
    whole = [events for events, _ in results if events[-1] == "data: [DONE]"]
    assert len(lost) + len(whole) == STREAMS
    assert lost, "work is shared, so the killed engine had streams"
    assert whole, "the other engine's streams go on"
    for events, ended_at in lost:
        error = json.loads(events[-1].removeprefix("data: "))["error"]
        assert error["code"] == "engine_lost"
        assert engine in error["message"]
        assert "data: [DONE]" not in events
        assert ended_at - killed_at < 5
    assert fresh.status_code == 200, fresh.text
    assert not any(process.is_running() for process in family), "its core and workers go with it"

    def is_replaced() -> bool:
        engines = fleet.engines("tiny")
        return engine not in {e["id"] for e in engines} and [e["state"] for e in engines] == [
            "ready",
            "ready",
        ]

    assert "ray_qwenfleet_engine_losses_total" in fleet.metrics()
    give_up_at = time.monotonic() + REPLACED_S
    while not is_replaced():
        assert time.monotonic() < give_up_at, fleet.engines("tiny")
        time.sleep(2)
