"""The connection over real sockets on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.wire import frames
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import Abort, Lease, encode

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
    yield Connection(reader, writer), peer_writer, peer_reader
    for each in (writer, peer_writer):
        each.transport.abort()
    server.close()


async def test_frames_arrive_whole_and_in_order_however_the_bytes_are_cut(pair: Pair) -> None:
    connection, peer, _ = pair
    sent = [Abort([f"request-{number}"]) for number in range(20)]
    stream = b"".join(map(encode, sent))
    for start in range(0, len(stream), 7):
        peer.write(stream[start : start + 7])
        await peer.drain()
    assert [await connection.receive() for _ in sent] == sent


async def test_a_frame_of_an_unknown_kind_is_skipped(pair: Pair) -> None:
    connection, peer, _ = pair
    body = b"\x81\xa4kind\xa6future"
    peer.write(len(body).to_bytes(4, "big") + body + encode(Lease()))
    assert await connection.receive() == Lease()


@pytest.mark.parametrize("bytes_sent", [0, 2, 4, 9])
async def test_an_end_in_the_middle_of_a_frame_is_a_reset(pair: Pair, bytes_sent: int) -> None:
    connection, peer, _ = pair
    peer.write(encode(Abort(["a request"]))[:bytes_sent])
    peer.close()
    with pytest.raises(ConnectionResetError):
        await connection.receive()


async def test_a_length_over_the_limit_is_refused_before_it_is_read(pair: Pair) -> None:
    connection, peer, _ = pair
    peer.write((frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="268435457 bytes exceeds"):
        await asyncio.wait_for(connection.receive(), 10)


async def test_a_peer_that_does_not_read_is_disconnected(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, _, peer_reader = pair
    monkeypatch.setattr("qwenfleet.deployments.wire.connection.MAX_BACKLOG_BYTES", 256 * 1024)
    frame = Abort(["x" * 64 * 1024])
    # The kernel's buffers take some megabytes before data waits here.
    for _ in range(2000):
        connection.send(frame)
        await asyncio.sleep(0)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(connection.receive(), 10)
    received = await asyncio.wait_for(peer_reader.read(-1), 10)
    assert len(received) < 1000 * len(encode(frame))
    assert connection.backlog_bytes == 0


async def test_a_peer_that_reads_slowly_is_kept(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, _, peer_reader = pair
    monkeypatch.setattr("qwenfleet.deployments.wire.connection.MAX_BACKLOG_BYTES", 256 * 1024)
    frame = Abort(["x" * 64 * 1024])
    size = len(encode(frame))
    for _ in range(100):
        connection.send(frame)
        assert await asyncio.wait_for(peer_reader.readexactly(size), 10) == encode(frame)


async def test_flush_waits_until_the_frames_are_sent(pair: Pair) -> None:
    connection, _, peer_reader = pair
    frame = Abort(["x" * 8 * 1024 * 1024])
    connection.send(frame)
    assert connection.backlog_bytes > 0
    reading = asyncio.create_task(peer_reader.readexactly(len(encode(frame))))
    await connection.flush(timeout_s=10)
    assert connection.backlog_bytes == 0
    assert await reading == encode(frame)


async def test_flush_gives_up_on_a_peer_that_does_not_read(pair: Pair) -> None:
    connection, _, _ = pair
    connection.send(Abort(["x" * 32 * 1024 * 1024]))
    with pytest.raises(TimeoutError):
        await connection.flush(timeout_s=0.05)
