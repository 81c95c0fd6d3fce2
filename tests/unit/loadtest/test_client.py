"""Tests one completion over HTTP: the request, the timing, and errors returned in the answer."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.loadtest import client
from qwenfleet.loadtest.client import Answer

SLOW_S = 0.005
"""What a token of the slow server takes."""


async def ask(
    url: str, model: str = "m", *, is_stream: bool, max_tokens: int = 4, seed: int = 1
) -> Answer:
    body = client.completion(
        model, max_tokens=max_tokens, is_stream=is_stream, rng=random.Random(seed)
    )
    async with client.session(1) as http:
        return await client.ask(http, url, body, is_stream=is_stream)


def completion(**fields: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_tokens": 7,
        "is_stream": False,
        "rng": random.Random(3),
    } | fields
    body: dict[str, Any] = json.loads(client.completion("coder", **options))
    return body


def test_a_completion_asks_for_exactly_so_many_greedy_tokens() -> None:
    body = completion()
    prompt = body.pop("prompt")
    assert len(prompt) == client.PROMPT_CHARACTERS
    assert body == {
        "model": "coder",
        "max_tokens": 7,
        "temperature": 0,
        "ignore_eos": True,
        "stream": False,
    }


def test_a_streamed_completion_asks_for_its_usage_too() -> None:
    body = completion(is_stream=True)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_prompts_differ_and_follow_from_the_seed() -> None:
    rng, again = random.Random(5), random.Random(5)
    first = [completion(rng=rng)["prompt"] for _ in range(50)]
    assert len(set(first)) == 50
    assert [completion(rng=again)["prompt"] for _ in range(50)] == first
    assert completion(rng=random.Random(6))["prompt"] not in first


async def test_a_streams_first_token_comes_long_before_its_end(slow_server: Any) -> None:
    answer = await ask(slow_server.url, is_stream=True, max_tokens=20)
    assert answer.error == ""
    assert answer.tokens == 20
    assert answer.ttft_s >= SLOW_S
    assert answer.latency_s - answer.ttft_s >= 18 * SLOW_S


async def test_a_whole_answer_has_one_time(slow_server: Any) -> None:
    answer = await ask(slow_server.url, is_stream=False, max_tokens=4)
    assert answer.error == ""
    assert answer.tokens == 4
    assert 4 * SLOW_S <= answer.ttft_s == answer.latency_s


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        ("status", "HTTP 500: .*the engine is dead"),
        ("not-utf-8", "HTTP 500: "),
        ("bad-json", "DecodeError: "),
        ("bad-text", "DecodeError: "),
        ("bad-depth", "RecursionError: "),
        ("bad-shape", "ValidationError: .*completion_tokens"),
        ("hang-up", "ClientPayloadError: "),
    ],
)
async def test_server_fault_is_returned_in_the_answer(
    server: Any, fault: str, reported: str, is_stream: bool
) -> None:
    answer = await ask(server.url, f"fault:{fault}", is_stream=is_stream)
    assert re.match(reported, answer.error)
    assert answer.tokens == 0
    assert answer.ttft_s == answer.latency_s > 0


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        ("no-done", "the stream ended without [DONE]"),
        ("long-line", "LineTooLong"),
    ],
)
async def test_stream_fault_is_returned_in_the_answer(
    server: Any, fault: str, reported: str
) -> None:
    answer = await ask(server.url, f"fault:{fault}", is_stream=True)
    assert reported in answer.error


async def test_a_stream_that_ends_with_an_error_event_has_no_tokens(server: Any) -> None:
    answer = await ask(server.url, "fault:error-event", is_stream=True)
    assert answer.tokens == 0


async def test_missing_server_is_returned_in_the_answer() -> None:
    (port,) = free_ports(1, "127.0.0.1")
    answer = await ask(f"http://127.0.0.1:{port}", is_stream=True)
    assert answer.error.startswith("ClientConnectorError: ")


async def test_slow_server_is_returned_in_the_answer(
    slow_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REQUEST_TIMEOUT_S", 0.05)
    answer = await ask(slow_server.url, is_stream=True, max_tokens=1000)
    assert answer.error.startswith("TimeoutError")
    assert answer.latency_s < 5
