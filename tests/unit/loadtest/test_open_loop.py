"""Streams that arrive at a rate: what is wrong with each, and that none waits for another."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.loadtest import open_loop
from qwenfleet.loadtest.open_loop import Ask, Stream


def ask(model: str = "m", max_tokens: int = 4) -> Ask:
    return Ask(model, "x", max_tokens, 1.0)


async def listen(url: str, model: str = "m", max_tokens: int = 4) -> Stream:
    async with open_loop.session() as http:
        return await open_loop.listen(http, url, ask(model, max_tokens))


async def test_a_whole_stream_has_its_text_and_no_fault(slow_server: Any) -> None:
    stream = await listen(slow_server.url, max_tokens=20)
    assert (stream.text, stream.fault) == ("a" * 20, "")
    assert stream.ended_at - stream.began_at >= 0.1
    assert 0.005 <= stream.gap_s < stream.ended_at - stream.began_at


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("status", "HTTP 500: "),
        ("no-done", "the stream ended without [DONE]"),
        ("error-event", "error event: {'message': 'the engine is dead'}"),
        ("hang-up", "ClientPayloadError: "),
        ("bad-json", "DecodeError: "),
    ],
)
async def test_a_broken_stream_names_its_fault(server: Any, fault: str, sentence: str) -> None:
    stream = await listen(server.url, f"fault:{fault}")
    assert stream.fault.startswith(sentence)


async def test_a_server_that_does_not_listen_is_a_fault() -> None:
    (port,) = free_ports(1, "127.0.0.1")
    stream = await listen(f"http://127.0.0.1:{port}")
    assert stream.fault.startswith("ClientConnectorError: ")


async def test_streams_do_not_wait_for_each_other(slow_server: Any) -> None:
    ended: list[Stream] = []
    await open_loop.run(
        [ask(max_tokens=100)],
        url=slow_server.url,
        per_s=40,
        until=time.monotonic() + 1.0,
        rng=random.Random(4),
        ended=ended.append,
    )
    assert slow_server.seen()["most_at_once"] > 5
    assert len(ended) == slow_server.seen()["requests"] > 20
    assert {stream.text for stream in ended} == {"a" * 100}


async def test_kinds_are_chosen_by_weight(slow_server: Any) -> None:
    ended: list[Stream] = []
    await open_loop.run(
        [Ask("often", "x", 1, 9.0), Ask("never", "x", 1, 0.0)],
        url=slow_server.url,
        per_s=50,
        until=time.monotonic() + 0.5,
        rng=random.Random(4),
        ended=ended.append,
    )
    assert {stream.ask.model for stream in ended} == {"often"}
