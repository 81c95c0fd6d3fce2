"""A link's state from an engine's frames: its condition, its drain, and how long it may be
silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import (
    Alive,
    Draining,
    EngineDescription,
    Frame,
    RankLoad,
    Trying,
    Welcome,
)
from qwenfleet.deployments.wire.liveness import ENOUGH, Condition


class Speaker:
    """A hand-made host that sends what the test gives it."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()

    def say(self, *frames: Frame) -> None:
        for frame in frames:
            self.frames.put_nowait(frame)

    async def __call__(self, connection: Connection) -> None:
        limits = EngineDescription(max_model_len=99, max_num_seqs=8, max_num_batched_tokens=512)
        connection.send(Welcome("engine-1", "coder", limits))
        while True:
            connection.send(await self.frames.get())


@pytest.fixture
async def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
def link_to(
    impostor: Any, connect: Any, eventually: Any
) -> Callable[[Speaker], Awaitable[tuple[Any, asyncio.Task[None]]]]:
    async def link_to(speaker: Speaker, **keywords: Any) -> tuple[Any, asyncio.Task[None]]:
        link, running = connect(await impostor(speaker), **keywords)
        await eventually(lambda: link.is_open)
        return link, running

    return link_to


async def test_the_condition_follows_the_host_and_every_change_is_logged(
    speaker: Speaker, link_to: Any, events: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qwenfleet.deployments.dispatch.link")
    link, _ = await link_to(speaker)
    assert (link.condition, link.is_leaving, link.reason) == (Condition.STEADY, False, "")
    for condition, is_leaving in (
        (Condition.SLOW, False),
        (Condition.FROZEN, True),
        (Condition.STEADY, False),
    ):
        news = events.news
        reason = "" if condition is Condition.STEADY else f"it is {condition.value}"
        frame = Alive(condition=condition.value, reason=reason)
        speaker.say(frame, frame)
        await eventually(lambda news=news: events.news == news + 2)
        assert (link.condition, link.is_leaving, link.reason) == (condition, is_leaving, reason)
    lines: list[Any] = caplog.records
    assert [line.condition for line in lines] == ["slow", "frozen", "steady"]
    assert [line.reason for line in lines] == ["it is slow", "it is frozen", ""]


async def test_a_condition_of_a_newer_host_counts_as_steady(
    speaker: Speaker, link_to: Any, events: Any, eventually: Any
) -> None:
    link, _ = await link_to(speaker)
    speaker.say(Alive(condition="frozen"), Alive(condition="overheated", reason="104 degrees"))
    await eventually(lambda: events.news == 3)
    assert link.condition is Condition.STEADY


async def test_a_drain_is_reported_once_and_its_reason_stays(
    speaker: Speaker, link_to: Any, events: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qwenfleet.deployments.dispatch.link")
    link, _ = await link_to(speaker)
    speaker.say(Draining("spot notice", 30))
    await eventually(lambda: link.is_draining)
    speaker.say(Alive(condition="slow", reason="no step for 2.0 s"))
    await eventually(lambda: link.condition is Condition.SLOW)
    assert (link.is_leaving, link.reason) == (True, "spot notice")
    line: Any = caplog.records[0]
    assert (line.getMessage(), line.engine, line.reason) == (
        "engine is draining",
        "engine-1",
        "spot notice",
    )


async def test_a_trial_is_reported(
    speaker: Speaker, link_to: Any, events: Any, eventually: Any
) -> None:
    await link_to(speaker)
    speaker.say(Trying(71))
    await eventually(lambda: events.tried == [Trying(71)])


async def test_targets_carry_the_limits_of_their_engine(
    speaker: Speaker, link_to: Any, eventually: Any
) -> None:
    link, _ = await link_to(speaker)
    (target,) = link.targets()
    assert (target.max_streams, target.step_tokens) == (8, 512)
    speaker.say(Alive([RankLoad(0, running=3, waiting=1, queued_prefill_tokens=7)]))
    await eventually(lambda: link.targets()[0].streams == 4)


async def test_targets_carry_the_speed_and_the_kv_usage_of_their_rank(
    speaker: Speaker, link_to: Any, eventually: Any
) -> None:
    link, _ = await link_to(speaker)
    (target,) = link.targets()
    assert (target.prefill_tokens_per_s, target.decode_step_s, target.kv_usage) == (0, 0, 0)
    known = RankLoad(1, kv_usage=0.25, prefill_tokens_per_s=8192.0, decode_step_s=0.5)
    speaker.say(Alive([RankLoad(0, running=3), known]))
    await eventually(lambda: len(link.targets()) == 2)
    assert [(t.prefill_tokens_per_s, t.decode_step_s, t.kv_usage) for t in link.targets()] == [
        (0, 0, 0),
        (8192, 0.5, 0.25),
    ]


async def test_silence_of_a_host_with_known_intervals_is_noticed_sooner(
    speaker: Speaker, link_to: Any, events: Any, eventually: Any
) -> None:
    wire = WireConfig(lease_s=300, heartbeat_s=0.02, connect_timeout_s=30)
    link, running = await link_to(speaker, wire=wire)
    for _ in range(ENOUGH):
        speaker.say(Alive())
    await asyncio.wait_for(asyncio.shield(running), 20)  # the lease alone would be five minutes
    assert [loss for loss, _ in events.losses] == [Loss.SILENT]
    assert not link.is_open
