"""A host's port before the secret is proved: whoever connects costs it little and gets nothing."""

from __future__ import annotations

import asyncio
import resource
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from qwenfleet.deployments.engine_host import greeting
from qwenfleet.deployments.wire import secret
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.encoding import encode
from qwenfleet.deployments.wire.frames import (
    PROTOCOL_VERSION,
    Challenge,
    Hello,
    Proof,
    Refused,
    Submit,
    Welcome,
)
from qwenfleet.deployments.wire.segments import parts, whole
from qwenfleet.deployments.wire.tokens import TokenIds

MIB = 2**20
TOKENS = [10, 11, 12, 13, 14]


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the host has closed the connection."""
    async with asyncio.timeout(10):
        try:
            while await reader.read(MIB):
                pass
        except ConnectionError:
            pass
    return True


async def pour(writer: asyncio.StreamWriter, mib: int) -> None:
    chunk = bytes(MIB)
    for _ in range(mib):
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        (256 * MIB - 1).to_bytes(4, "big"),
        b"".join(parts(encode(Submit("x", 0, TokenIds(), b"x" * MIB)))),
        whole(msgspec.msgpack.encode(Hello("x" * 4090, PROTOCOL_VERSION))),
        whole(encode(Proof(b"x" * 32))),
        whole(b"\x81\xa4kind\xa6future") * 5000,
    ],
    ids=["http", "tls", "256 MB", "large frame", "long hello", "proof first", "unknown kinds"],
)
async def test_garbage_before_the_secret_closes_the_connection(
    serve_engine: Any, dial: Any, stream: bytes, wire: Any
) -> None:
    engine = await serve_engine(wire=wire.model_copy(update={"connect_timeout_s": 0.5}))
    reader, writer = await asyncio.open_connection(engine.record.host, engine.record.port)
    writer.write(stream)
    assert await is_closed(reader)
    writer.close()
    peer = await dial(engine.record)
    assert await peer.tokens(peer.submit("x")) == TOKENS
    assert len(engine.host._sessions) == 1


async def test_memory_stays_flat_while_strangers_send_what_they_can(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    """200 MB from one connection without the secret once took 1.9 GB."""
    engine = await serve_engine()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for first in [(200 * MIB).to_bytes(4, "big"), whole(encode(Hello("gw-x", PROTOCOL_VERSION)))]:
        _, writer = await asyncio.open_connection(engine.record.host, engine.record.port)
        writer.write(first)
        with pytest.raises(ConnectionError):
            await pour(writer, 200)
        writer.close()
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 32
    await eventually(lambda: not engine.host._greeter._strangers)


async def test_a_gateway_is_served_while_strangers_hold_all_connections(
    serve_engine: Any, dial: Any
) -> None:
    engine = await serve_engine()
    strangers = [
        await asyncio.open_connection(engine.record.host, engine.record.port)
        for _ in range(2 * greeting.MAX_STRANGERS)
    ]
    for _, writer in strangers[::2]:
        writer.write(whole(encode(Hello("gw-x", PROTOCOL_VERSION, nonce=secret.nonce()))))
    peer = await dial(engine.record)
    assert await peer.tokens(peer.submit("x")) == TOKENS
    assert len(engine.host._greeter._strangers) <= greeting.MAX_STRANGERS
    assert await is_closed(strangers[0][0]), "the oldest goes first"
    for _, writer in strangers:
        writer.transport.abort()


async def test_the_address_with_most_strangers_loses_its_oldest(
    serve_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted:
        is_aborted = False

        def abort(self) -> None:
            self.is_aborted = True

    monkeypatch.setattr(greeting, "MAX_STRANGERS", 3)
    greeter = (await serve_engine()).host._greeter
    first, second, third, fourth = connections = [Counted() for _ in range(4)]
    addresses = ["10.0.0.1", "6.6.6.6", "6.6.6.6", "10.0.0.2"]
    with ExitStack() as stack:
        for connection, address in zip(connections, addresses, strict=True):
            stack.enter_context(greeter._stranger(connection, address))
    assert [c.is_aborted for c in (first, second, third, fourth)] == [False, True, False, False]


async def test_the_secret_never_crosses_the_wire_and_a_proof_fits_one_connection(
    serve_engine: Any, dial: Any
) -> None:
    engine = await serve_engine()
    seen: list[bytes] = []
    nonce = secret.nonce()
    proofs = []
    for _ in range(2):
        peer = await dial(engine.record, greets=False)
        hello = Hello("gw-a", PROTOCOL_VERSION, nonce=nonce)
        peer.connection.send(hello)
        challenge = await peer.receive(Challenge)
        known = (engine.record.secret, "gw-a", nonce, challenge.nonce)
        proofs.append(Proof(secret.gateway_proof(*known)))
        peer.connection.send(proofs[0])  # the second time, that of the first connection
        answer = await peer.connection.receive()
        seen += [encode(hello), encode(challenge), encode(proofs[-1]), encode(answer)]
        if len(proofs) == 1:
            assert isinstance(answer, Welcome)
            assert answer.proof == secret.engine_proof(*known)
        else:
            assert isinstance(answer, Refused)
            assert "wrong secret" in answer.reason
        peer.connection.close()
    assert not any(engine.record.secret.encode() in frame for frame in seen)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello("x" * 41, PROTOCOL_VERSION, nonce=b"n" * 32), "more than 40 bytes"),
        (Hello("gw-a", PROTOCOL_VERSION, nonce=b"n" * 31), "a nonce of 31 bytes"),
        (Hello("gw-a", PROTOCOL_VERSION), "a nonce of 0 bytes"),
    ],
)
async def test_a_hello_that_no_gateway_sends_is_refused(
    serve_engine: Any, dial: Any, hello: Hello, reason: str
) -> None:
    engine = await serve_engine()
    peer = await dial(engine.record, greets=False)
    peer.connection.send(hello)
    assert reason in (await peer.receive(Refused)).reason
    await peer.until_closed()


async def test_a_crowd_of_strangers_is_one_line_in_the_log(
    serve_engine: Any, dial: Any, caplog: Any, eventually: Any, clock: Any
) -> None:
    engine = await serve_engine(clock=clock)
    for round_ in (1, 2):
        for _ in range(5):
            peer = await dial(engine.record, greets=False)
            peer.connection.send(Proof(b""))
            await peer.until_closed()
        await eventually(lambda: not engine.host._greeter._strangers)
        lines = [r for r in caplog.records if r.getMessage() == "connection refused"]
        assert [line.connections for line in lines] == [1, 5][:round_]
        clock.advance(greeting.QUIET_S)
    assert lines[0].address == "127.0.0.1"


async def test_large_frames_are_taken_only_after_the_proof(serve_engine: Any, dial: Any) -> None:
    engine = await serve_engine(limits={"max_model_len": 2_000_000})
    peer = await dial(engine.record)
    prompt = range(100_000, 300_000)
    assert await peer.tokens(peer.submit("x", prompt)) == TOKENS
    assert isinstance(peer.connection, Connection)
