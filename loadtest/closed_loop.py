"""Closed loop: each client sends its next request when the last one is answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from qwenfleet.loadtest import client
from qwenfleet.loadtest.client import Answer


@dataclass(frozen=True)
class ClosedLoop:
    """One kind of traffic."""

    is_stream: bool
    max_tokens: int
    concurrency: int

    def __str__(self) -> str:
        kind = "stream" if self.is_stream else "whole"
        return f"{kind}, {self.max_tokens} tokens, c={self.concurrency}"


@dataclass(frozen=True)
class Sample:
    """The result of one run of a load."""

    answers: tuple[Answer, ...]
    elapsed_s: float
    cpu_s: float
    """CPU time of the server's processes during the run."""


async def run(
    load: ClosedLoop,
    *,
    url: str,
    model: str,
    seconds: float,
    server_cpu_s: Callable[[], float],
    rng: random.Random,
) -> Sample:
    """Send one unmeasured round, then requests for `seconds`; wait for the last answer."""

    async def send() -> Answer:
        body = client.completion(
            model, max_tokens=load.max_tokens, is_stream=load.is_stream, rng=rng
        )
        answer = await client.ask(http, url, body, is_stream=load.is_stream)
        if not answer.error and answer.tokens != load.max_tokens:
            return Answer(
                answer.ttft_s,
                answer.latency_s,
                answer.tokens,
                f"{answer.tokens} tokens instead of {load.max_tokens}",
            )
        return answer

    async def loop_until(stop_at: float) -> list[Answer]:
        answers = [await send()]
        while time.perf_counter() < stop_at:
            answers.append(await send())
        return answers

    async with client.session(load.concurrency) as http:
        await asyncio.gather(*(send() for _ in range(load.concurrency)))
        cpu_before_s, started_at = server_cpu_s(), time.perf_counter()
        lists = await asyncio.gather(
            *(loop_until(started_at + seconds) for _ in range(load.concurrency))
        )
        elapsed_s = time.perf_counter() - started_at
        cpu_s = server_cpu_s() - cpu_before_s
    return Sample(tuple(answer for answers in lists for answer in answers), elapsed_s, cpu_s)
