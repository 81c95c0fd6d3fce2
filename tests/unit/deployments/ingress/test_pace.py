"""Tests that large bodies are worked on in turn and small ones at once."""

from __future__ import annotations

import asyncio
import time

from qwenfleet.deployments.ingress.pace import LARGE_BYTES, Pace

BUSY_S = 0.05


async def work(pace: Pace, order: list[str], name: str, num_bytes: int = LARGE_BYTES) -> None:
    await pace.turn(num_bytes)
    order.append(name)
    time.sleep(BUSY_S)  # noqa: ASYNC251  # as a parser does


async def test_the_loop_is_free_between_two_large_bodies() -> None:
    pace, order = Pace(), list[str]()
    works = [asyncio.create_task(work(pace, order, str(i))) for i in range(4)]
    longest_s, began_at = 0.0, time.monotonic()
    while len(order) < len(works):
        await asyncio.sleep(0)
        now = time.monotonic()
        longest_s, began_at = max(longest_s, now - began_at), now
    assert order == ["0", "1", "2", "3"]
    assert longest_s < 2 * BUSY_S


async def test_a_small_body_waits_for_no_large_one() -> None:
    pace, order = Pace(), list[str]()
    large = [asyncio.create_task(work(pace, order, "large")) for _ in range(2)]
    await asyncio.sleep(0)
    await work(pace, order, "small", LARGE_BYTES - 1)
    assert order == ["large", "small"]
    await asyncio.gather(*large)


async def test_who_leaves_takes_no_turn() -> None:
    pace, order = Pace(), list[str]()
    works = [asyncio.create_task(work(pace, order, str(i))) for i in range(3)]
    await asyncio.sleep(0)
    works[1].cancel()
    await asyncio.gather(works[0], works[2])
    assert order == ["0", "2"]
