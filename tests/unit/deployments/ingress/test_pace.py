"""Tests that large bodies begin in turn and small ones at once."""

from __future__ import annotations

import asyncio

import pytest

from qwenfleet.deployments.ingress import pace
from qwenfleet.deployments.ingress.pace import LARGE_BYTES, TURN_S, Pace


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were slept, which take no time."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(pace.asyncio, "sleep", sleep)
    return slept


async def test_large_bodies_wait_for_those_before_them(waits: list[float]) -> None:
    now = 100.0
    turns = Pace(lambda: now)
    for num_bytes in (10**6, 4 * 10**6, LARGE_BYTES):
        await turns.turn(num_bytes)
    assert waits == pytest.approx([0, 10**6 * TURN_S, 5 * 10**6 * TURN_S])
    now = 200.0
    await turns.turn(10**6)
    assert waits[-1] == 0


async def test_small_bodies_do_not_wait(waits: list[float]) -> None:
    turns = Pace()
    await turns.turn(10**9)
    await turns.turn(LARGE_BYTES - 1)
    assert waits == [0]


async def test_a_turn_lets_others_run() -> None:
    ran = asyncio.Event()
    asyncio.get_running_loop().call_soon(ran.set)
    await Pace().turn(LARGE_BYTES)
    assert ran.is_set()
