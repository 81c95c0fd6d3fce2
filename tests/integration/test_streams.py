"""Streams that end early: the client leaves, the deadline comes. Two gateways share the work."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytestmark = pytest.mark.integration

LONG = {"max_tokens": 1800, "ignore_eos": True, "stream": True, "temperature": 0, "prompt": "x"}
"""At least 20 s on both models, so that an engine that is idle soon after was stopped."""


def start_stream(fleet, model, headers=None):
    """An open stream whose first token has come."""
    client = httpx.Client(timeout=60)
    request = client.build_request(
        "POST", f"{fleet.url}/v1/completions", json=LONG | {"model": model}, headers=headers
    )
    response = client.send(request, stream=True)
    lines = response.iter_lines()
    assert next(lines).startswith("data: ")
    return client, response, lines


@pytest.mark.parametrize("model", ["tiny", "scripted"])
def test_a_client_that_hangs_up_stops_its_engine(fleet, model):
    client, response, _ = start_stream(fleet, model)
    response.close()
    client.close()

    fleet.expect_idle(model)


def test_a_client_that_hangs_up_on_a_plain_request_stops_its_engine(fleet):
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(
            f"{fleet.url}/v1/completions",
            json=LONG | {"model": "scripted", "stream": False},
            timeout=httpx.Timeout(10, read=2),
        )

    fleet.expect_idle("scripted")


def test_a_stream_ends_at_its_deadline_with_an_error_event(fleet):
    started_at = time.monotonic()
    client, _, lines = start_stream(fleet, "scripted", headers={"x-request-timeout-s": "2"})
    tail = [line for line in lines if line][-2:]
    client.close()
    took_s = time.monotonic() - started_at

    assert tail[0] == "event: error"
    assert json.loads(tail[1].removeprefix("data: "))["error"]["code"] == "timeout"
    assert 1.5 < took_s < 10
    fleet.expect_idle("scripted")


def test_a_plain_request_is_answered_504_at_its_deadline(fleet):
    answer = httpx.post(
        f"{fleet.url}/v1/completions",
        json=LONG | {"model": "scripted", "stream": False},
        headers={"x-request-timeout-s": "1"},
        timeout=30,
    )

    assert answer.status_code == 504
    assert "1 s" in answer.json()["error"]["message"]


def test_both_gateways_answer_and_engines_share_the_work(fleet):
    gateways_seen: set[str] = set()
    engines_seen: set[str] = set()
    streams = 8
    barrier = threading.Barrier(streams + 1, timeout=60)

    def hold(_: int) -> None:
        client, response, _ = start_stream(fleet, "scripted")
        barrier.wait()
        barrier.wait()
        response.close()
        client.close()

    with ThreadPoolExecutor(streams) as pool:
        futures = [pool.submit(hold, number) for number in range(streams)]
        barrier.wait()
        give_up_at = time.monotonic() + 30
        while time.monotonic() < give_up_at and not (len(gateways_seen) == len(engines_seen) == 2):
            status = fleet.status()
            gateways_seen |= {g["id"] for g in status["gateways"] if g["requests"] > 0}
            engines_seen |= {
                e["id"] for e in status["engines"] if e["model"] == "scripted" and e["running"] > 0
            }
        barrier.wait()
        for future in futures:
            future.result(timeout=60)

    assert len(gateways_seen) == 2
    assert len(engines_seen) == 2


def test_two_models_answer_at_the_same_time_without_mixing(fleet):
    def complete(model: str) -> str:
        answer = httpx.post(
            f"{fleet.url}/v1/completions",
            json={"model": model, "prompt": "hi hi", "max_tokens": 12, "temperature": 0},
            timeout=120,
        ).json()
        assert answer["model"] == model
        text: str = answer["choices"][0]["text"]
        return text

    alone = {model: complete(model) for model in ("tiny", "scripted")}
    with ThreadPoolExecutor(8) as pool:
        models = ["tiny", "scripted"] * 8
        answers = list(pool.map(complete, models))

    assert alone["scripted"] == "hi hi hi hi "
    assert {m: {a for n, a in zip(models, answers, strict=True) if n == m} for m in alone} == {
        model: {text} for model, text in alone.items()
    }
