"""The connection over real sockets on loopback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.wire import connection as module
from qwenfleet.deployments.wire.connection import BUDGET_BYTES, Connection
from qwenfleet.deployments.wire.encoding import FrameTooLarge, encode
from qwenfleet.deployments.wire.frames import (
    MAX_SUBMIT_BYTES,
    SMALL_FRAME_BYTES,
    Abort,
    Lease,
    Submit,
)
from qwenfleet.deployments.wire.segments import Assembler, whole
from qwenfleet.deployments.wire.tokens import TokenIds

MIB = 2**20

Pair = tuple[Connection, asyncio.StreamWriter, asyncio.StreamReader]


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    """A connection, and the bare streams of its peer."""
    accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result((reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    peer_reader, peer_writer = await accepted
    connection = Connection(reader, writer)
    yield connection, peer_writer, peer_reader
    connection.abort()
    peer_writer.transport.abort()
    await asyncio.sleep(0)
    server.close()


def submit(number: int, size: int = 3 * MIB) -> Submit:
    return Submit("x", 0, TokenIds(), b"x" * size, number=number)


async def read(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    """Read as many frames."""
    assembler = Assembler(MAX_SUBMIT_BYTES)
    bodies: list[bytes] = []
    async with asyncio.timeout(20):
        while len(bodies) < count:
            data = await reader.read(MIB)
            assert data, "the connection was closed"
            bodies += assembler.feed(data)
    return bodies


async def test_frames_arrive_whole_and_in_order_however_the_bytes_are_cut(pair: Pair) -> None:
    connection, peer, _ = pair
    sent = [Abort([number]) for number in range(20)]
    stream = b"".join(whole(encode(frame)) for frame in sent)
    for start in range(0, len(stream), 7):
        peer.write(stream[start : start + 7])
        await peer.drain()
    assert [await connection.receive() for _ in sent] == sent


async def test_a_frame_of_an_unknown_kind_is_skipped(pair: Pair) -> None:
    connection, peer, _ = pair
    peer.write(whole(b"\x81\xa4kind\xa6future") + whole(encode(Lease())))
    assert await connection.receive() == Lease()


@pytest.mark.parametrize("bytes_sent", [0, 2, 4, 9])
async def test_an_end_in_the_middle_of_a_frame_is_a_reset(pair: Pair, bytes_sent: int) -> None:
    connection, peer, _ = pair
    peer.write(whole(encode(Abort([1])))[:bytes_sent])
    peer.close()
    with pytest.raises(ConnectionResetError):
        await connection.receive()


async def test_a_length_over_the_limit_is_refused_before_it_is_read(pair: Pair) -> None:
    connection, peer, _ = pair
    peer.write((SMALL_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="65537 bytes exceeds the limit of 65536"):
        await asyncio.wait_for(connection.receive(), 10)


async def test_a_known_peer_may_send_large_frames_of_the_kinds_that_are_large(pair: Pair) -> None:
    connection, peer, _ = pair
    connection.accept(MAX_SUBMIT_BYTES)
    other = Connection(asyncio.StreamReader(), peer)
    other.send(submit(1))
    assert await asyncio.wait_for(connection.receive(), 10) == submit(1)
    body = b"\x82\xa4kind\xa5lease\xa1x\xc6\x00\x20\x00\x00" + bytes(2 * MIB)
    other._queue.put(Lease(), body)
    other.send(submit(2))
    with pytest.raises(FrameTooLarge, match="Lease of 2097171 bytes"):
        await asyncio.wait_for(connection.receive(), 10)


async def test_a_peer_that_reads_slowly_is_kept_and_gets_everything(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 64 MB of backlog the peer was once cut, however well it read."""
    monkeypatch.setattr(module, "TICK_S", 0.02)
    monkeypatch.setattr(module, "STALL_S", 1.0)
    connection, _, peer_reader = pair
    for number in range(30):
        connection.send(submit(number))
    assert connection.backlog_bytes > 80 * MIB
    assembler, numbers = Assembler(MAX_SUBMIT_BYTES), 0
    async with asyncio.timeout(60):
        while numbers < 30:
            numbers += len(assembler.feed(await peer_reader.read(MIB)))
            await asyncio.sleep(0.005)
    assert connection.backlog_bytes == 0


async def test_a_peer_that_reads_nothing_is_given_up_after_a_while(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.01)
    monkeypatch.setattr(module, "STALL_S", 0.3)
    connection, _, _ = pair
    for number in range(10):  # more than the kernel's buffers take
        connection.send(submit(number))
    began = asyncio.get_running_loop().time()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(connection.receive(), 10)
    assert asyncio.get_running_loop().time() - began > 0.25
    (line,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert line.getMessage() == "peer stopped reading, closing the connection"
    assert connection.backlog_bytes == 0


async def test_an_idle_peer_is_not_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.01)
    monkeypatch.setattr(module, "STALL_S", 0.05)
    connection, _, peer_reader = pair
    connection.send(submit(1, 10))
    await asyncio.sleep(0.3)
    connection.send(submit(2, 10))
    assert await read(peer_reader, 2) == [encode(submit(1, 10)), encode(submit(2, 10))]


async def test_a_process_that_stood_still_does_not_blame_its_peer(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.05)
    monkeypatch.setattr(module, "STALL_S", 0.5)
    connection, _, peer_reader = pair
    for number in range(10):
        connection.send(submit(number))
    await asyncio.sleep(0.1)
    blocked = asyncio.get_running_loop()
    until = blocked.time() + 0.8
    while blocked.time() < until:  # the loop is blocked for longer than the peer may be
        pass
    assert len(await read(peer_reader, 10)) == 10


async def test_a_small_frame_does_not_wait_for_the_large_ones_before_it(pair: Pair) -> None:
    connection, _, peer_reader = pair
    for number in range(5):
        connection.send(submit(number, 15 * MIB))
    connection.send(Lease())
    assembler, seen_bytes = Assembler(MAX_SUBMIT_BYTES), 0
    bodies: list[bytes] = []
    async with asyncio.timeout(20):
        while not bodies:
            data = await peer_reader.read(MIB)
            seen_bytes += len(data)
            bodies = assembler.feed(data)
    assert bodies[0] == encode(Lease())
    assert seen_bytes < 2 * MIB


async def test_drain_waits_for_room_and_not_longer(pair: Pair) -> None:
    connection, _, peer_reader = pair
    await connection.drain()
    for number in range(10):
        connection.send(submit(number))
    draining = asyncio.create_task(connection.drain())
    await asyncio.sleep(0.05)
    assert not draining.done()
    reading = asyncio.create_task(read(peer_reader, 10))
    await asyncio.wait_for(draining, 10)
    assert connection.backlog_bytes < BUDGET_BYTES + MIB
    assert len(await reading) == 10
    await connection.drain()


async def test_drain_ends_with_the_connection(pair: Pair) -> None:
    connection, peer, _ = pair
    for number in range(10):
        connection.send(submit(number))
    draining = asyncio.create_task(connection.drain())
    await asyncio.sleep(0)
    peer.transport.abort()
    await asyncio.wait_for(draining, 10)
    connection.send(Lease())  # is dropped


async def test_bytes_move_while_the_peer_lives(pair: Pair) -> None:
    connection, peer, peer_reader = pair
    assert connection.moved_bytes == 0
    peer.write(whole(encode(Lease())))
    await connection.receive()
    received = connection.moved_bytes
    assert received == len(whole(encode(Lease())))
    for number in range(5):
        connection.send(submit(number))
    await asyncio.sleep(0.1)
    stuck = connection.moved_bytes
    assert stuck > received
    await asyncio.sleep(0.05)
    assert connection.moved_bytes == stuck
    await peer_reader.readexactly(8 * MIB)
    assert connection.moved_bytes > stuck


async def test_flush_waits_until_the_frames_are_sent(pair: Pair) -> None:
    connection, _, peer_reader = pair
    connection.send(submit(1, 8 * MIB))
    connection.send(Lease())
    assert connection.backlog_bytes > 0
    reading = asyncio.create_task(read(peer_reader, 2))
    await connection.flush(timeout_s=10)
    assert connection.backlog_bytes == 0
    assert await reading == [encode(Lease()), encode(submit(1, 8 * MIB))]


async def test_flush_gives_up_on_a_peer_that_does_not_read(pair: Pair) -> None:
    connection, _, _ = pair
    for number in range(4):
        connection.send(submit(number, 15 * MIB))
    with pytest.raises(TimeoutError):
        await connection.flush(timeout_s=0.05)
