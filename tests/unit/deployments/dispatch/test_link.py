"""A gateway's end of the wire, against real hosts and against hosts that misbehave."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import (
    Alive,
    Draining,
    EngineDescription,
    Lease,
    Lost,
    Outputs,
    RankLoad,
    Refused,
    Submit,
    Welcome,
)
from qwenfleet.deployments.wire.tokens import TokenIds

PATIENT = WireConfig(lease_s=30, heartbeat_s=0.02, connect_timeout_s=30)
BRISK = WireConfig(lease_s=0.3, heartbeat_s=0.02, connect_timeout_s=0.3)


Behaviour = Callable[[Connection], Awaitable[None]]


def welcome(ranks: int = 1, **fields: Any) -> Welcome:
    description = EngineDescription(max_model_len=99, data_parallel_size=ranks)
    return Welcome("engine-1", "coder", description, **fields)


def submit(name: str, prompt_tokens: int = 3, dp_rank: int = 0, number: int = 7) -> Submit:
    return Submit(name, 0, TokenIds(range(prompt_tokens)), b"", dp_rank=dp_rank, number=number)


async def until_closed(connection: Connection) -> None:
    while True:
        await connection.receive()


async def test_after_welcome_the_engine_is_described_and_idle(
    serve_engine: Any, connect: Any, eventually: Any
) -> None:
    engine = await serve_engine()
    link, _ = connect(engine.record)
    assert not link.is_open
    assert link.description is None
    assert link.targets() == []
    await eventually(lambda: link.is_open)
    description: Any = link.description
    assert description.max_model_len == 4096
    (target,) = link.targets()
    assert (target.engine, target.dp_rank) == ("engine-1", 0)
    assert (target.streams, target.queued_prefill_tokens) == (0, 0)
    assert not link.is_draining


async def test_every_rank_of_an_engine_is_a_target(
    impostor: Any, connect: Any, eventually: Any
) -> None:
    async def behave(connection: Connection) -> None:
        connection.send(welcome(ranks=3))
        connection.send(Alive([RankLoad(0, 1, 2, 30), RankLoad(1), RankLoad(2, 4, 0, 5)]))
        await until_closed(connection)

    link, _ = connect(await impostor(behave))
    await eventually(lambda: link.is_open and link.targets()[0].streams)
    assert [(t.dp_rank, t.streams, t.queued_prefill_tokens) for t in link.targets()] == [
        (0, 3, 30),
        (1, 0, 0),
        (2, 4, 5),
    ]


async def test_targets_count_submits_that_the_engine_has_not_seen(
    impostor: Any, connect: Any, eventually: Any
) -> None:
    frames: asyncio.Queue[Alive] = asyncio.Queue()

    async def behave(connection: Connection) -> None:
        connection.send(welcome(ranks=2))
        while True:
            connection.send(await frames.get())

    link, _ = connect(await impostor(behave))
    await eventually(lambda: link.is_open)
    link.submit(submit("a", 100, dp_rank=0, number=1))
    link.submit(submit("b", 20, dp_rank=1, number=2))
    link.submit(submit("c", 7, dp_rank=1, number=3))

    def loads() -> list[tuple[int, int]]:
        return [(target.streams, target.queued_prefill_tokens) for target in link.targets()]

    assert loads() == [(1, 100), (2, 27)]
    # The engine's load now includes the first two; the third is still in flight.
    frames.put_nowait(Alive([RankLoad(0, 1, 0, 60), RankLoad(1, 1)], received=[1, 2]))
    await eventually(lambda: loads() == [(1, 60), (2, 7)])
    frames.put_nowait(Alive([RankLoad(0), RankLoad(1, 2)], received=[3]))
    await eventually(lambda: loads() == [(0, 0), (2, 0)])
    # A frame without load changes only the number of seen submits.
    link.submit(submit("d", 5, number=4))
    frames.put_nowait(Alive(received=[4]))
    await eventually(lambda: loads() == [(0, 0), (2, 0)])


async def test_outputs_reach_the_dispatcher_and_aborts_the_core(
    serve_engine: Any, connect: Any, events: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=100_000)
    link, _ = connect(engine.record)
    await eventually(lambda: link.is_open)
    link.submit(submit("x"))
    await eventually(lambda: len(events.outputs) > 2)
    assert events.outputs[0].outputs[0].wire_id == 7
    link.abort([7])
    await eventually(lambda: not engine.core.active)


async def test_a_rejected_attempt_is_reported(
    serve_engine: Any, connect: Any, events: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=100_000)
    link, _ = connect(engine.record)
    await eventually(lambda: link.is_open)
    link.submit(submit("x"))
    link.submit(submit("x"))
    await eventually(lambda: events.rejected)
    assert events.rejected[0].wire_id == 7
    assert events.losses == []


async def test_an_idle_link_keeps_its_lease(impostor: Any, connect: Any, events: Any) -> None:
    has_leases = asyncio.Event()

    async def behave(connection: Connection) -> None:
        connection.send(welcome())
        for _ in range(5):
            assert await connection.receive() == Lease()
        has_leases.set()
        await until_closed(connection)

    # Unvalidated: a lease far shorter than the silence that ends a link.
    wire = WireConfig.model_construct(lease_s=0.06, heartbeat_s=5, connect_timeout_s=30)
    link, _ = connect(await impostor(behave), wire)
    await asyncio.wait_for(has_leases.wait(), 10)
    assert link.is_open
    assert events.losses == []


async def lose_by_refusal(connect: Any, impostor: Any, serve_engine: Any) -> Any:
    engine = await serve_engine()
    wrong = EngineRecord(
        **{f: getattr(engine.record, f) for f in ("id", "model", "node", "pid", "state")},
        host=engine.record.host,
        port=engine.record.port,
        secret="wrong",
    )
    return connect(wrong)


async def lose_by_nobody_there(connect: Any, impostor: Any, serve_engine: Any) -> Any:
    engine = await serve_engine()
    await engine.kill()
    return connect(engine.record)


def behaving(behave: Behaviour, wire: WireConfig = PATIENT) -> Any:
    async def lose(connect: Any, impostor: Any, serve_engine: Any) -> Any:
        return connect(await impostor(behave), wire)

    return lose


async def _hang_up_at_once(connection: Connection) -> None:
    pass


async def _never_greet(connection: Connection) -> None:
    await until_closed(connection)


async def _greet_oddly(connection: Connection) -> None:
    connection.send(Alive())
    await until_closed(connection)


async def _speak_the_future(connection: Connection) -> None:
    connection.send(Refused("another version", protocol=9))
    await until_closed(connection)


async def _reset(connection: Connection) -> None:
    connection.send(welcome())
    await asyncio.sleep(0.02)


async def _fall_silent(connection: Connection) -> None:
    connection.send(welcome())
    await until_closed(connection)


async def _send_garbage(connection: Connection) -> None:
    connection.send(welcome())
    connection._writer.write(b"\x00\x00\x00\x04oops")
    await until_closed(connection)


async def _say_lost(connection: Connection) -> None:
    connection.send(welcome())
    connection.send(Lost("out of memory"))
    await until_closed(connection)


async def _say_frozen(connection: Connection) -> None:
    connection.send(welcome())
    connection.send(Lost("no step for 120.1 s", is_frozen=True))
    await until_closed(connection)


async def _say_drained(connection: Connection) -> None:
    connection.send(welcome())
    connection.send(Draining("scaled down"))
    connection.send(Lost("scaled down", is_drained=True))
    await until_closed(connection)


@pytest.mark.parametrize(
    ("lose", "loss", "reason"),
    [
        pytest.param(lose_by_refusal, Loss.RESET, "refused the connection.*secret", id="refusal"),
        pytest.param(lose_by_nobody_there, Loss.RESET, "refused|Connect call", id="nobody there"),
        pytest.param(behaving(_hang_up_at_once), Loss.RESET, "closed the", id="hang-up at once"),
        pytest.param(behaving(_never_greet, BRISK), Loss.SILENT, "silent", id="no greeting"),
        pytest.param(
            behaving(_greet_oddly), Loss.RESET, "sent Alive instead of Welcome", id="odd greeting"
        ),
        pytest.param(
            behaving(_speak_the_future), Loss.RESET, "uses protocol version 9", id="far protocol"
        ),
        pytest.param(behaving(_reset), Loss.RESET, "closed the connection", id="reset"),
        pytest.param(behaving(_fall_silent, BRISK), Loss.SILENT, "silent", id="silence"),
        pytest.param(behaving(_send_garbage), Loss.RESET, "protocol violated", id="garbage"),
        pytest.param(behaving(_say_lost), Loss.CORE_DIED, "^out of memory$", id="core died"),
        pytest.param(behaving(_say_frozen), Loss.FROZEN, "^no step for 120.1 s$", id="frozen"),
        pytest.param(behaving(_say_drained), Loss.DRAINED, "^scaled down$", id="drained"),
    ],
)
async def test_every_end_of_a_link_is_reported_once_with_its_kind_and_reason(
    connect: Any, impostor: Any, serve_engine: Any, events: Any,
    lose: Any, loss: Loss, reason: str,
) -> None:  # fmt: skip
    link, running = await lose(connect, impostor, serve_engine)
    await asyncio.wait_for(asyncio.shield(running), 10)
    ((lost, why),) = events.losses
    assert lost is loss
    assert re.search(reason, why)
    assert not link.is_open


async def test_a_cancelled_link_is_lost_once(
    serve_engine: Any, connect: Any, events: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=100_000)
    link, running = connect(engine.record)
    await eventually(lambda: link.is_open)
    link.submit(submit("x"))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(events.losses) == 1
    await eventually(lambda: not engine.core.active)


async def test_a_link_that_never_opened_leaves_no_connection(impostor: Any, connect: Any) -> None:
    was_closed = asyncio.Event()

    async def behave(connection: Connection) -> None:
        try:
            await until_closed(connection)
        finally:
            was_closed.set()

    _, running = connect(await impostor(behave), BRISK)
    await asyncio.wait_for(asyncio.shield(running), 10)
    await asyncio.wait_for(was_closed.wait(), 10)


async def test_a_draining_engine_is_marked_and_its_outputs_still_count(
    impostor: Any, connect: Any, events: Any, eventually: Any
) -> None:
    async def behave(connection: Connection) -> None:
        connection.send(welcome())
        connection.send(Draining("scaled down", 10))
        connection.send(Outputs([]))
        await until_closed(connection)

    link, _ = connect(await impostor(behave))
    await eventually(lambda: events.outputs)
    assert link.is_draining
    assert link.is_open
    assert events.losses == []
