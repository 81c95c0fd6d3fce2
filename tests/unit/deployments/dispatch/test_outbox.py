"""Large attempts wait for their engine to read, and small ones do not wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.deployments.dispatch.outbox import largest_bytes
from qwenfleet.deployments.ingress.errors import RequestTooLarge
from qwenfleet.deployments.wire.encoding import encode
from qwenfleet.deployments.wire.frames import Abort, EngineDescription, Submit, Welcome
from qwenfleet.deployments.wire.tokens import TokenIds

FOREVER = 1_000_000
MIB = 2**20
PROMPT = list(range(100_000, 1_100_000))
"""1M tokens, 5 MB on the wire."""
LONG = {"max_model_len": 2_000_000}


class NoCache:
    """A core's prefix cache that holds nothing."""

    def hit_tokens(self, prompt: list[int], salt: str | None) -> int:
        return 0


async def in_a_minute(is_true: Callable[[], object]) -> None:
    """Poll until the claim holds; prompts of this length take seconds."""
    async with asyncio.timeout(60):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=50),
    st.lists(st.integers(0, 2**32 - 1), max_size=50),
    st.binary(max_size=300),
    st.none() | st.text(max_size=100),
    st.text(max_size=64),
)
def test_the_estimate_is_never_below_the_real_size(
    prompt: list[int], output: list[int], payload: bytes, salt: str | None, name: str
) -> None:
    headers = {"traceparent": "0" * 55, "tracestate": "x" * 256}
    ids, given = TokenIds(prompt), TokenIds(output)
    submit = Submit(name, 999, ids, payload, 2**63, given, 2**31, salt, 999, True, headers, 2**63)
    assert len(encode(submit)) <= largest_bytes(submit)


async def test_many_long_prompts_at_once_reach_their_engine_and_cost_no_stream(
    desk: Any, serve_engine: Any, eventually: Any, observed_core: Any
) -> None:
    """Above 64 MB in one loop, the only engine was once cut, with all its streams."""
    core = observed_core(num_tokens=FOREVER)
    core._cache = NoCache()  # which would take a second for each prompt
    engine = await serve_engine(limits=LONG, core=core)
    await desk.meet(engine)
    streams = [desk.ask(f"stream-{i}") for i in range(3)]
    await eventually(lambda: all(stream.tokens for stream in streams))
    link = desk.link(engine)
    long = [desk.ask(f"long-{i}", PROMPT, max_tokens=1) for i in range(16)]
    probe = desk.ask("probe", max_tokens=1)
    assert link._connection.backlog_bytes < 2 * 5 * MIB
    await in_a_minute(lambda: probe.is_over)
    assert not all(stream.is_over for stream in long), "a small request overtakes"
    await in_a_minute(lambda: all(stream.is_over for stream in long))
    assert all(stream.tokens == [10] and stream.error is None for stream in long)
    assert {stream.flight.attempt for stream in [*streams, *long, probe]} == {0}
    assert desk.link(engine) is link
    assert [rank.queued_prefill_tokens for rank in link.targets()] == [0]


async def test_a_request_id_of_25_mb_is_no_longer_on_the_wire(
    desk: Any, serve_engine: Any, eventually: Any
) -> None:
    """One such id once cut two healthy engines in turn, 7 times in 26 s."""
    engine = await serve_engine(num_tokens=5)
    await desk.meet(engine)
    stream = desk.ask("x" * 25 * MIB)
    await eventually(lambda: stream.is_over)
    assert stream.tokens == [10, 11, 12, 13, 14]
    assert stream.flight.attempt == 0
    (submit,) = engine.core.submits
    assert len(submit.request_id) == 64


async def test_a_request_that_no_frame_can_carry_is_refused_and_costs_no_engine(
    desk: Any, serve_engine: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER)
    await desk.meet(engine)
    kept = desk.ask("kept")
    await eventually(lambda: kept.tokens)
    link = desk.link(engine)
    stream = desk.ask("large", payload=bytes(17 * MIB))
    assert isinstance(stream.error, RequestTooLarge)
    assert stream.error.status == 413
    assert "above the limit of 16777216 bytes" in str(stream.error)
    count = len(kept.tokens)
    await eventually(lambda: len(kept.tokens) > count + 3)
    assert desk.link(engine) is link
    assert set(desk.dispatcher._flights) == {"kept"}


async def test_an_attempt_that_is_aborted_before_it_was_sent_is_never_sent(
    desk: Any, impostor: Any, eventually: Any
) -> None:
    reads = asyncio.Event()
    frames: list[Any] = []

    async def behave(connection: Any) -> None:
        connection.send(Welcome("engine-1", "coder", EngineDescription(max_model_len=9 * MIB)))
        await reads.wait()
        while True:
            frames.append(await connection.receive())

    record = await impostor(behave)
    desk.dispatcher.update([record])
    link = desk.dispatcher._roster.link("engine-1")
    await eventually(lambda: link.is_open)
    streams = [desk.ask(f"long-{i}", PROMPT) for i in range(6)]
    await asyncio.sleep(0.05)
    desk.dispatcher.abort([stream.flight.request_id for stream in streams])
    assert link.targets()[0].queued_prefill_tokens <= 3 * len(PROMPT)
    reads.set()
    last = desk.ask("last")
    await eventually(lambda: any(getattr(f, "request_id", "") == "last" for f in frames))
    await eventually(lambda: sum(isinstance(f, Abort) for f in frames) == len(frames) // 2)
    sent = [f.number for f in frames if isinstance(f, Submit)]
    aborted = [number for f in frames if isinstance(f, Abort) for number in f.wire_ids]
    assert set(aborted) == set(sent) - {last.flight.key}, "each abort after its attempt"
    assert len(sent) < 5


async def test_an_attempt_that_turns_out_not_to_be_sendable_ends_alone(
    desk: Any, serve_engine: Any, eventually: Any
) -> None:
    await desk.meet(await serve_engine(limits=LONG, num_tokens=FOREVER))
    odd = desk.ask("odd", PROMPT[:20_000], payload={1j})
    kept = desk.ask("kept", PROMPT[:20_000])
    await eventually(lambda: odd.is_over and kept.tokens)
    assert odd.error is not None
    assert kept.flight.attempt == 0
    (link,) = desk.dispatcher._roster.usable()
    assert [rank.queued_prefill_tokens for rank in link.targets()] == [0]


async def test_a_gateway_names_the_version_of_an_engine_that_is_older(
    desk: Any, eventually: Any, caplog: Any
) -> None:
    """Bytes as version 1 sends them, which checks the secret in Hello first."""
    from qwenfleet.deployments.registry.records import EngineRecord

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(4), "big")
        hello = msgspec.msgpack.decode(await reader.readexactly(length))
        assert "secret" not in hello
        refused = msgspec.msgpack.encode({"kind": "refused", "reason": "wrong secret"})
        writer.write(len(refused).to_bytes(4, "big") + refused)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    record = EngineRecord("engine-1", "coder", "node", 1, "ready", host=host, port=port)
    desk.dispatcher.update([record])
    await eventually(lambda: "cannot work with this gateway" in caplog.text)
    (line,) = [r for r in caplog.records if "cannot work" in r.getMessage()]
    assert "uses protocol version 1, this gateway 2" in line.reason
    server.close()


@pytest.mark.parametrize("proof", [b"", b"x" * 32])
async def test_an_engine_that_does_not_prove_the_secret_gets_no_request(
    impostor: Any, connect: Any, events: Any, eventually: Any, proof: bytes
) -> None:
    async def behave(connection: Any) -> None:
        connection.proof = proof
        connection.send(Welcome("engine-1", "coder", EngineDescription(max_model_len=99)))
        await connection.receive()

    wire = WireConfig(lease_s=30, heartbeat_s=0.02, connect_timeout_s=5)
    link, _ = connect(await impostor(behave), wire)
    await eventually(lambda: events.losses)
    assert "did not prove that it knows its own secret" in events.losses[0][1]
    assert link.is_refused
    assert events.news == 0
