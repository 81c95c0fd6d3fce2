"""An engine that dies, freezes or is drained: its streams go on elsewhere as if nothing had
happened. The fast part of tests/loss, on the fleet that all integration tests share."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from qwenfleet.cluster import metrics

pytestmark = pytest.mark.integration

TOKENS = 1200
BURSTS = {"tools"}
"""vLLM's tool parser waits for whole parameters: this stream may say nothing until its end."""
FRESH = {"model": "tiny", "prompt": "x", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def undisturbed(fleet, running_streams):
    """What the six streams say when nothing happens."""
    with running_streams(fleet.url, "tiny", TOKENS) as transcripts:
        pass
    return dict(transcripts)


def strike_midway(fleet, running_streams, strike, patience_s=0):
    """Run the six streams and strike when each has begun; their transcripts. A new request is
    answered at once, or within `patience_s`."""
    with running_streams(fleet.url, "tiny", TOKENS) as transcripts:
        give_up_at = time.monotonic() + 120
        while not all(t.times for name, t in transcripts.items() if name not in BURSTS):
            assert time.monotonic() < give_up_at, "streams do not start"
            time.sleep(0.02)
        strike()
        give_up_at = time.monotonic() + patience_s
        fresh = httpx.post(f"{fleet.url}/v1/completions", json=FRESH, timeout=60)
        while fresh.status_code >= 500 and time.monotonic() < give_up_at:
            time.sleep(0.2)
            fresh = httpx.post(f"{fleet.url}/v1/completions", json=FRESH, timeout=60)
    assert fresh.status_code == 200, fresh.text
    return transcripts


def expect_same(transcripts, undisturbed):
    for name, transcript in transcripts.items():
        assert transcript.error is None, (name, transcript.error)
        assert transcript.differences(undisturbed[name]) == [], name


def busiest(engines):
    """The one that works most: routing may have given all streams to the faster one."""

    def cpu_s(engine):
        host = psutil.Process(engine["pid"])
        family = [host, *host.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in family)

    before = [cpu_s(engine) for engine in engines]
    time.sleep(0.5)
    return max(zip(engines, before, strict=True), key=lambda pair: cpu_s(pair[0]) - pair[1])[0]


def test_streams_outlive_a_killed_host(fleet, running_streams, undisturbed):
    engines = fleet.ready("tiny")
    killed = []

    def kill():
        engine = busiest(engines)
        killed.append((engine["id"], psutil.Process(engine["pid"]).children(recursive=True)))
        os.kill(engine["pid"], signal.SIGKILL)

    expect_same(strike_midway(fleet, running_streams, kill), undisturbed)
    ((engine, family),) = killed
    fleet.expect_counted(metrics.ENGINE_LOSSES, metrics.RESUMES, metrics.RESUME_GAP_SECONDS)
    fleet.expect_ready("tiny", 2, lost=engine)
    assert not any(process.is_running() for process in family), "its core and workers go with it"


def test_streams_leave_a_drained_engine(fleet, running_streams, undisturbed):
    engine = fleet.ready("tiny")[0]["id"]
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(fleet.cli, "drain", engine)  # it takes seconds to import Ray
        transcripts = strike_midway(fleet, running_streams, lambda: None)
        answer = drained.result(timeout=120)
    expect_same(transcripts, undisturbed)
    assert answer.returncode == 0, answer.stderr
    assert f"{engine} stopped" in answer.stdout
    fleet.expect_ready("tiny", 2, lost=engine)


def test_request_without_an_engine_waits_for_one(fleet):
    """The last engine of a model goes in the middle of a stream, which waits for the next."""
    body = {"model": "scripted", "prompt": "x", "stream": True, "max_tokens": 300}
    text = last = ""
    killed = False
    with (
        httpx.Client(timeout=120) as client,
        client.stream("POST", f"{fleet.url}/v1/completions", json=body) as response,
    ):
        engines = [engine["pid"] for engine in fleet.engines("scripted")]
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += httpx.Response(200, content=line[6:]).json()["choices"][0]["text"]
            if not killed and len(text) > 3:
                killed = True
                for pid in engines:
                    os.kill(pid, signal.SIGKILL)
            last = line or last
    assert text == ("hi " * 100)
    assert last == "data: [DONE]"
    fleet.expect_ready("scripted", 2)


def test_the_work_of_a_killed_gateway_stops_and_the_other_gateways_goes_on(
    fleet, running_streams, undisturbed
):
    gateways = fleet.status()["gateways"]

    def kill():
        os.kill(gateways[0]["pid"], signal.SIGKILL)

    # HAProxy may have handed the new request to the gateway in the moment of its death.
    transcripts = strike_midway(fleet, running_streams, kill, patience_s=10)
    whole = {name: t for name, t in transcripts.items() if t.error is None}
    assert 0 < len(whole) < len(transcripts), "both gateways had streams"
    expect_same(whole, undisturbed)
    fleet.expect_idle("tiny")
    fleet.expect_counted(metrics.ORPHANS)
    wait = time.monotonic() + 120
    while sum(gateway["ready"] for gateway in fleet.status()["gateways"]) < 2:
        assert time.monotonic() < wait, fleet.status()["gateways"]
        time.sleep(1)


def test_draining_an_unknown_engine_says_which_there_are(fleet):
    answer = fleet.cli("drain", "no-such-engine")
    assert answer.returncode == 1
    assert "no engine is called 'no-such-engine'" in answer.stderr
    assert fleet.engines("tiny")[0]["id"] in answer.stderr
    assert "Traceback" not in answer.stderr
