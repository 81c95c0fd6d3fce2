"""An engine host with a scripted core, over real connections."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from qwenfleet.cluster.labels import FinishReason
from qwenfleet.deployments.engine_host.core import CoreDead
from qwenfleet.deployments.wire.frames import (
    PROTOCOL_VERSION,
    Abort,
    Alive,
    Draining,
    Lease,
    Lost,
    Outputs,
    Refused,
    Rejected,
    Submit,
    Welcome,
)


async def test_two_gateways_each_get_their_own_tokens_in_order(
    serve_engine: Any, dial: Any
) -> None:
    engine = await serve_engine(tokens=tuple(range(20)), num_tokens=20)
    a, b = await dial(engine.record, "gw-a"), await dial(engine.record, "gw-b")
    keys = [(peer, peer.submit(name)) for name in ("x", "y") for peer in (a, b)]
    # The same request id from two gateways: two attempts with different wire ids.
    assert len({key for _, key in keys}) == 4
    streams: dict[int, list[int]] = {}
    for peer in (a, b):
        open_keys = {key for owner, key in keys if owner is peer}
        while open_keys:
            for output in (await peer.receive(Outputs)).outputs:
                assert output.wire_id in open_keys
                streams.setdefault(output.wire_id, []).extend(output.token_ids)
                if output.finish_reason is not None:
                    assert output.finish_reason == FinishReason.STOP
                    open_keys.discard(output.wire_id)
    assert streams == {key: list(range(20)) for _, key in keys}


async def test_one_step_is_one_frame_for_each_gateway(
    serve_engine: Any, dial: Any, gate: Any, eventually: Any, observed_core: Any
) -> None:
    core = observed_core(sleep=gate, num_tokens=5)
    engine = await serve_engine(core=core)
    peer = await dial(engine.record)
    keys = {peer.submit("x"), peer.submit("y"), peer.submit("z")}
    await eventually(lambda: core.active == keys)
    gate.step(2)  # a step may have begun before the last one arrived
    frame = await peer.receive(Outputs)
    received = set(frame.received)
    while len(frame.outputs) < 3:
        frame = await peer.receive(Outputs)
        received |= set(frame.received)
    assert {output.wire_id for output in frame.outputs} == keys
    earlier = [f for f in peer.seen if isinstance(f, Alive)]
    assert received.union(*(f.received for f in earlier)) == keys


async def test_a_request_ends_at_its_own_max_tokens(serve_engine: Any, dial: Any) -> None:
    engine = await serve_engine(num_tokens=50)
    peer = await dial(engine.record)
    peer.submit("x", max_tokens=2)
    outputs = [(await peer.receive(Outputs)).outputs[0] for _ in range(2)]
    assert [output.finish_reason for output in outputs] == [None, FinishReason.LENGTH]


async def test_a_wrong_secret_is_refused(serve_engine: Any, dial: Any) -> None:
    engine = await serve_engine()
    peer = await dial(engine.record, greets=False)
    refused = await peer.greet(secret="guessed")
    assert isinstance(refused, Refused)
    assert "secret" in refused.reason
    peer.submit("x")
    await peer.until_closed()
    assert engine.core.submits == []


@pytest.mark.parametrize("protocol", [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1])
async def test_another_protocol_version_is_refused_with_both_versions(
    serve_engine: Any, dial: Any, protocol: int
) -> None:
    engine = await serve_engine()
    peer = await dial(engine.record, greets=False)
    refused = await peer.greet(protocol=protocol)
    assert isinstance(refused, Refused)
    assert refused.protocol == PROTOCOL_VERSION
    assert f"protocol version {protocol}, the engine {PROTOCOL_VERSION}" in refused.reason
    await peer.until_closed()


async def test_a_gateway_of_version_1_reads_why_it_is_refused(serve_engine: Any, dial: Any) -> None:
    """Bytes as version 1 has them: a length before each frame, the secret in Hello."""
    engine = await serve_engine()
    peer = await dial(engine.record, greets=False)
    hello = msgspec.msgpack.encode({"kind": "hello", "gateway": "gw-a", "secret": "open sesame"})
    peer.connection._writer.write(len(hello).to_bytes(4, "big") + hello)
    reader = peer.connection._reader
    length = int.from_bytes(await reader.readexactly(4), "big")
    refused = msgspec.msgpack.decode(await reader.readexactly(length))
    assert refused["kind"] == "refused"
    assert "protocol version 1, the engine 2" in refused["reason"]


async def test_welcome_describes_the_engine_and_its_limits(serve_engine: Any, dial: Any) -> None:
    engine = await serve_engine(engine="engine-7")
    peer = await dial(engine.record, greets=False)
    welcome = await peer.greet()
    assert isinstance(welcome, Welcome)
    assert (welcome.engine, welcome.model, welcome.lease_s) == ("engine-7", "coder", 30)
    assert welcome.description.max_model_len == 4096


async def test_a_connection_without_hello_is_closed(serve_engine: Any, dial: Any) -> None:
    engine = await serve_engine()
    peer = await dial(engine.record, greets=False)
    peer.submit("x")
    await peer.until_closed()
    assert engine.core.submits == []


async def test_a_silent_connection_is_closed(serve_engine: Any, dial: Any, wire: Any) -> None:
    engine = await serve_engine(wire=wire.model_copy(update={"connect_timeout_s": 0.05}))
    peer = await dial(engine.record, greets=False)
    await peer.until_closed()


async def test_a_gateway_that_sends_engine_frames_is_disconnected_and_its_attempts_stop(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=100_000)
    peer = await dial(engine.record)
    key = peer.submit("x")
    await peer.tokens(key, 1)
    peer.connection.send(Lost("confused"))
    await peer.until_closed()
    await eventually(lambda: not engine.core.active)


async def test_a_duplicate_attempt_is_rejected_and_the_first_continues(
    serve_engine: Any, dial: Any
) -> None:
    engine = await serve_engine(tokens=tuple(range(200)), num_tokens=200)
    peer = await dial(engine.record)
    key = peer.submit("x")
    first = await peer.tokens(key, 1)
    peer.submit("x", number=key)
    assert (await peer.receive(Rejected)).wire_id == key
    between = [o for f in peer.seen if isinstance(f, Outputs) for o in f.outputs][1:]
    rest = await peer.tokens(key)
    assert first + [t for o in between for t in o.token_ids] + rest == list(range(200))
    assert len(engine.core.submits) == 1


async def test_a_second_attempt_of_a_request_runs_separately(serve_engine: Any, dial: Any) -> None:
    engine = await serve_engine(num_tokens=100_000)
    peer = await dial(engine.record)
    keys = {peer.submit("x", attempt=0), peer.submit("x", attempt=1)}
    seen: set[int] = set()
    while seen != keys:
        seen |= {output.wire_id for output in (await peer.receive(Outputs)).outputs}


async def test_an_attempt_that_the_core_cannot_run_is_rejected_with_its_reason(
    serve_engine: Any, dial: Any, observed_core: Any
) -> None:
    class Picky(observed_core.Core):  # type: ignore[misc]
        async def add(self, wire_id: str, submit: Submit) -> None:
            if len(submit.prompt_token_ids) > 10:
                raise ValueError("the prompt has more than 10 tokens")
            await super().add(wire_id, submit)

    engine = await serve_engine(core=Picky(observed_core.model()))
    peer = await dial(engine.record)
    key = peer.submit("long", range(11))
    rejected = await peer.receive(Rejected)
    assert (rejected.wire_id, rejected.reason) == (key, "the prompt has more than 10 tokens")
    assert await peer.tokens(peer.submit("short")) == [10, 11, 12, 13, 14]
    assert engine.host.load[0].queued_prefill_tokens == 0


async def test_abort_stops_the_work_of_that_attempt_only(
    serve_engine: Any, dial: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=100_000)
    peer = await dial(engine.record)
    dropped, kept = peer.submit("dropped"), peer.submit("kept")
    await eventually(lambda: engine.core.active == {dropped, kept})
    peer.connection.send(Abort([dropped, 123_456_789]))
    await eventually(lambda: engine.core.active == {kept})
    assert await peer.tokens(kept, 3)


async def test_a_gateway_cannot_abort_the_work_of_another(serve_engine: Any, dial: Any) -> None:
    engine = await serve_engine(num_tokens=100_000)
    a, b = await dial(engine.record, "gw-a"), await dial(engine.record, "gw-b")
    key, own = a.submit("x"), b.submit("y")
    await a.tokens(key, 1)
    await b.tokens(own, 1)
    b.connection.send(Abort([key, own]))
    while own in engine.core.active:
        await b.receive(Alive)
    assert engine.core.active == {key}


async def test_load_counts_prompt_tokens_until_their_first_output(
    serve_engine: Any, dial: Any, gate: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(sleep=gate))
    peer = await dial(engine.record)
    peer.submit("x", range(100))
    peer.submit("y", range(200, 250))
    received: list[int] = []
    while len(received) < 2:
        received += (alive := await peer.receive(Alive)).received
    assert [rank.queued_prefill_tokens for rank in alive.load] == [150]
    gate.step(2)
    outputs = await peer.receive(Outputs)
    while len(outputs.outputs) < 2:
        outputs = await peer.receive(Outputs)
    assert [(rank.queued_prefill_tokens, rank.running) for rank in outputs.load] == [(0, 2)]


async def test_a_stuck_core_shows_as_a_living_host_without_progress(
    serve_engine: Any, dial: Any, gate: Any, observed_core: Any, clock: Any
) -> None:
    engine = await serve_engine(core=observed_core(sleep=gate), clock=clock)
    peer = await dial(engine.record)
    peer.submit("x")
    gate.step()
    step = (await peer.receive(Outputs)).step
    clock.advance(7)
    peer.connection.send(Lease())
    alive = await peer.receive(Alive)
    while alive.step_age_s == 0:
        alive = await peer.receive(Alive)
    assert (alive.step, alive.step_age_s, alive.clock_s) == (step, 7, clock.now)


async def test_the_death_of_the_core_is_reported_to_every_gateway_and_ends_the_host(
    serve_engine: Any, dial: Any
) -> None:
    engine = await serve_engine(num_tokens=50, fail_after_tokens=8)
    a, b = await dial(engine.record, "gw-a"), await dial(engine.record, "gw-b")
    a.submit("x")
    for peer in (a, b):
        assert "after 8 tokens" in (await peer.receive(Lost)).reason
    with pytest.raises(CoreDead, match="after 8 tokens"):
        await engine.running
    assert sum(len(f.outputs) for f in a.seen if isinstance(f, Outputs)) == 8


async def test_a_draining_engine_announces_it_finishes_its_streams_and_ends(
    serve_engine: Any, dial: Any, gate: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(sleep=gate))
    peer = await dial(engine.record)
    key = peer.submit("x")
    gate.step()
    tokens = await peer.tokens(key, 1)
    draining = asyncio.create_task(engine.host.drain("scaled down", 20.0))
    notice = await peer.receive(Draining)
    assert (notice.reason, notice.deadline_s) == ("scaled down", 20.0)
    assert not draining.done()
    with pytest.raises(ConnectionError):
        await dial(engine.record, "gw-late")
    gate.open()
    tokens += await peer.tokens(key)
    assert tokens == [10, 11, 12, 13, 14]
    assert (await peer.receive(Lost)).reason == "scaled down"
    await peer.until_closed()
    await draining


async def test_a_drain_interrupts_streams_at_its_deadline(serve_engine: Any, dial: Any) -> None:
    engine = await serve_engine(num_tokens=100_000)
    peer = await dial(engine.record)
    await peer.tokens(peer.submit("x"), 1)
    await engine.host.drain("spot notice", 0.05)
    assert (await peer.receive(Lost)).reason == "spot notice"


async def test_the_shortest_notice_during_a_drain_sets_its_end(
    serve_engine: Any, dial: Any
) -> None:
    engine = await serve_engine(num_tokens=100_000)
    peer = await dial(engine.record)
    await peer.tokens(peer.submit("x"), 1)
    engine.host.hasten("not draining yet", 0.0)
    draining = asyncio.create_task(engine.host.drain("scaled down", 600.0))
    assert (await peer.receive(Draining)).deadline_s == 600.0
    engine.host.hasten("moved one day", 1200.0)
    engine.host.hasten("spot notice", 0.05)
    notice = await peer.receive(Draining)
    assert (notice.reason, notice.deadline_s) == ("spot notice", 0.05)
    assert (await peer.receive(Lost)).reason == "spot notice"
    async with asyncio.timeout(10):
        await draining
    engine.host.hasten("too late", 0.0)


async def test_new_attempts_are_refused_while_draining_and_other_engines_can_run_them(
    serve_engine: Any, dial: Any, gate: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(sleep=gate))
    peer = await dial(engine.record)
    key = peer.submit("x")
    gate.step()
    await peer.tokens(key, 1)
    draining = asyncio.create_task(engine.host.drain("scaled down", 20.0))
    await peer.receive(Draining)
    late = peer.submit("late")
    rejected = await peer.receive(Rejected)
    assert (rejected.wire_id, rejected.is_final) == (late, False)
    assert rejected.reason == "scaled down"
    gate.open()
    await draining
    assert [submit.request_id for submit in engine.core.submits] == ["x"]


async def test_a_gateway_that_connects_during_a_drain_is_notified(
    serve_engine: Any, dial: Any, gate: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(sleep=gate))
    busy = await dial(engine.record)
    busy.submit("x")
    late = await dial(engine.record, "gw-late", greets=False)
    await busy.receive(Alive)  # the host has accepted the other connection, too
    draining = asyncio.create_task(engine.host.drain("scaled down", 20.0))
    await busy.receive(Draining)
    assert isinstance(await late.greet(), Welcome)
    notice = await late.connection.receive()
    assert isinstance(notice, Draining)
    assert (notice.reason, notice.deadline_s) == ("scaled down", 20.0)
    gate.open()
    await draining


async def test_a_dead_core_refuses_for_now_and_an_invalid_request_is_refused_for_good(
    serve_engine: Any, dial: Any, observed_core: Any
) -> None:
    class Failing(observed_core.Core):  # type: ignore[misc]
        async def add(self, wire_id: str, submit: Submit) -> None:
            raise CoreDead("dead") if submit.request_id == "x" else ValueError("odd")

    engine = await serve_engine(core=Failing(observed_core.model()))
    peer = await dial(engine.record)
    answers = {}
    for name in ("x", "y"):
        peer.submit(name)
        rejected = await peer.receive(Rejected)
        answers[name] = (rejected.reason, rejected.is_final)
    assert answers == {"x": ("dead", False), "y": ("odd", True)}
    assert len(engine.host._attempts) == 0
