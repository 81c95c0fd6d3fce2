"""A closed loop: as many requests in flight as it has clients, each counted once."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.loadtest import closed_loop
from qwenfleet.loadtest.closed_loop import ClosedLoop, Sample


async def run(
    url: str,
    load: ClosedLoop,
    *,
    model: str = "m",
    seconds: float = 0.2,
    cpu_s: tuple[float, float] = (0.0, 0.0),
    seed: int = 1,
) -> Sample:
    meter = iter(cpu_s)
    return await closed_loop.run(
        load,
        url=url,
        model=model,
        seconds=seconds,
        server_cpu_s=lambda: next(meter),
        rng=random.Random(seed),
    )


def test_a_load_says_what_it_is() -> None:
    assert str(ClosedLoop(True, 64, 8)) == "stream, 64 tokens, c=8"
    assert str(ClosedLoop(False, 1, 32)) == "whole, 1 tokens, c=32"


@pytest.mark.parametrize("is_stream", [True, False])
async def test_so_many_requests_are_in_flight_and_all_but_the_first_round_count(
    slow_server: Any, is_stream: bool
) -> None:
    load = ClosedLoop(is_stream, max_tokens=4, concurrency=3)
    started_at = time.perf_counter()
    sample = await run(slow_server.url, load)
    took_s = time.perf_counter() - started_at
    seen = slow_server.seen()
    assert seen["most_at_once"] == 3
    assert seen["connections"] == 3 + 1, "one for each client, and that of seen()"
    assert seen["requests"] == len(sample.answers) + 3
    assert len(sample.answers) > 3
    assert {(answer.tokens, answer.error) for answer in sample.answers} == {(4, "")}
    assert all(0 < answer.ttft_s <= answer.latency_s for answer in sample.answers)
    assert 0.2 <= sample.elapsed_s < took_s


async def test_the_cpu_time_is_what_passed_while_it_was_measured(server: Any) -> None:
    sample = await run(server.url, ClosedLoop(True, 1, 1), seconds=0.01, cpu_s=(10.0, 12.5))
    assert sample.cpu_s == 2.5


async def test_every_client_is_measured_once_even_in_no_time(server: Any) -> None:
    sample = await run(server.url, ClosedLoop(True, 1, 5), seconds=0)
    assert len(sample.answers) == 5


async def test_the_prompts_of_one_seed_are_the_same_again(slow_server: Any) -> None:
    counts = []
    for seed in (7, 7, 8):
        await run(slow_server.url, ClosedLoop(False, 1, 1), seed=seed)
        counts.append(slow_server.seen()["requests"])
    prompts = slow_server.seen()["prompts"]
    first, again, other = (
        prompts[begin:end] for begin, end in zip((0, *counts), counts, strict=False)
    )
    common = min(len(first), len(again))
    assert common > 3
    assert first[:common] == again[:common]
    assert not set(other) & set(first)
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        ("status", "HTTP 500"),
        ("short", "3 tokens instead of 4"),
        ("error-event", "0 tokens instead of 4"),
        ("no-done", "the stream ended without [DONE]"),
        ("bad-json", "DecodeError"),
    ],
)
async def test_errors_are_counted_and_do_not_end_the_loop(
    server: Any, fault: str, reported: str
) -> None:
    sample = await run(server.url, ClosedLoop(True, 4, 2), model=f"fault:{fault}", seconds=0.2)
    assert len(sample.answers) > 2
    assert all(answer.error.startswith(reported) for answer in sample.answers)


async def test_stopped_server_causes_only_errors() -> None:
    (port,) = free_ports(1, "127.0.0.1")
    sample = await run(f"http://127.0.0.1:{port}", ClosedLoop(True, 4, 2), seconds=0.02)
    assert all(answer.error for answer in sample.answers)
    assert sample.elapsed_s < 5
