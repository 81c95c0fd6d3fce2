"""Ownership of requests, whose tokens count, and requests that no engine can take."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.labels import FinishReason
from qwenfleet.deployments.ingress.answers import Family
from qwenfleet.deployments.ingress.errors import EngineRefused, NoEngine
from qwenfleet.deployments.ingress.exchange import Exchange
from qwenfleet.deployments.wire.frames import Output, Outputs, Rejected, Submit, Trying

FOREVER = 1_000_000
SCRIPT = {"tokens": tuple(range(60)), "num_tokens": 60}
PLAYED = list(range(60))


@pytest.fixture
def desk(new_desk: Any) -> Any:
    return new_desk()


async def test_a_request_runs_to_its_end(desk: Any, serve_engine: Any, eventually: Any) -> None:
    engine = await serve_engine(**SCRIPT)
    await desk.meet(engine)
    whole, short = desk.ask("whole"), desk.ask("short", max_tokens=3)
    await eventually(lambda: whole.is_over and short.is_over)
    assert (whole.tokens, whole.finish_reason) == (PLAYED, FinishReason.STOP)
    assert (short.tokens, short.finish_reason) == (PLAYED[:3], FinishReason.LENGTH)
    assert [submit.attempt for submit in engine.core.submits] == [0, 0]
    assert not desk.dispatcher._flights
    assert not list(desk.dispatcher._owners)


async def test_concurrent_requests_keep_their_tokens_apart_and_spread_evenly(
    desk: Any, serve_engine: Any, eventually: Any
) -> None:
    await desk.meet(
        await serve_engine(), await serve_engine(engine="engine-2", tokens=(1, 2), num_tokens=5)
    )
    streams = [desk.ask(f"cmpl-{index}") for index in range(8)]
    await eventually(lambda: all(stream.is_over for stream in streams))
    played = Counter(tuple(stream.tokens) for stream in streams)
    assert played == {(10, 11, 12, 13, 14): 4, (1, 2, 1, 2, 1): 4}


async def test_an_abort_reaches_the_core_and_nothing_else(
    desk: Any, serve_engine: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER)
    await desk.meet(engine)
    desk.ask("dropped"), desk.ask("kept")
    await eventually(lambda: len(engine.core.active) == 2)
    desk.dispatcher.abort(["dropped", "one that never was"])
    await eventually(lambda: engine.core.names == {"kept.0"})


async def test_outputs_of_aborted_unknown_or_earlier_attempts_are_dropped(
    desk: Any, serve_engine: Any, gate: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(sleep=gate, num_tokens=FOREVER))
    await desk.meet(engine)
    dropped, kept = desk.ask("dropped"), desk.ask("kept")
    link = desk.link(engine)
    desk.dispatcher.abort(["dropped"])
    key = kept.flight.key
    late = Output(dropped.flight.key, [1], finish_reason=FinishReason.STOP)
    desk.dispatcher.on_outputs(link, Outputs([late, Output(key, [2])]))
    desk.dispatcher.on_outputs(link, Outputs([Output(key + 900, [3]), late]))
    desk.dispatcher.on_outputs(link, Outputs([Output(key + 1, [4]), Output(key, [5])]))
    assert (dropped.tokens, kept.tokens) == ([], [2, 5])
    assert not dropped.is_over


async def test_an_engine_cannot_answer_for_another(
    desk: Any, serve_engine: Any, gate: Any, observed_core: Any
) -> None:
    engines = [
        await serve_engine(engine=name, core=observed_core(sleep=gate)) for name in ("e1", "e2")
    ]
    await desk.meet(*engines)
    stream = desk.ask("cmpl-1")
    owner = stream.flight.link
    (stranger,) = [desk.link(e) for e in engines if desk.link(e) is not owner]
    desk.dispatcher.on_outputs(stranger, Outputs([Output(stream.flight.key, [666])]))
    desk.dispatcher.on_outputs(
        owner, Outputs([Output(stream.flight.key, [7], finish_reason=FinishReason.LENGTH)])
    )
    assert stream.tokens == [7]


async def test_outputs_of_an_earlier_attempt_are_ignored(
    desk: Any, serve_engine: Any, gate: Any, observed_core: Any, eventually: Any
) -> None:
    doomed = await serve_engine(engine="e1", core=observed_core(sleep=gate, num_tokens=FOREVER))
    await desk.meet(doomed)
    stream = desk.ask("cmpl-1")
    await eventually(lambda: doomed.core.active)
    zombie, first_key = desk.link(doomed), stream.flight.key
    safe = await serve_engine(engine="e2", core=observed_core(sleep=gate, num_tokens=FOREVER))
    await desk.meet(safe)
    await doomed.kill()
    await eventually(lambda: safe.core.names == {"cmpl-1.1"})
    stale = Output(first_key, [666], finish_reason=FinishReason.STOP)
    for link in (zombie, desk.link(safe)):
        desk.dispatcher.on_outputs(link, Outputs([stale]))
        desk.dispatcher.on_rejected(link, Rejected(first_key, "of old"))
        desk.dispatcher.on_trying(link, Trying(first_key))
    # The lost engine uses the key of the new attempt, which it never had.
    desk.dispatcher.on_outputs(zombie, Outputs([Output(stream.flight.key, [667])]))
    desk.dispatcher.on_rejected(zombie, Rejected(stream.flight.key, "not here"))
    desk.dispatcher.on_trying(zombie, Trying(stream.flight.key))
    assert (stream.tokens, stream.is_over) == ([], False)
    assert not stream.flight.suspicion.is_on_trial
    gate.step()
    await eventually(lambda: stream.tokens == [10])


async def test_a_request_without_an_engine_waits_until_one_connects(
    desk: Any, serve_engine: Any, eventually: Any, metrics: Any
) -> None:
    streams = [desk.ask(f"cmpl-{index}") for index in range(3)]
    assert not desk.dispatcher.num_engines
    assert desk.dispatcher.num_moving == 3
    engine = await serve_engine(**SCRIPT)
    await desk.meet(engine)
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [PLAYED] * 3
    assert [submit.attempt for submit in engine.core.submits] == [0] * 3
    assert desk.dispatcher.num_moving == 0
    assert metrics.resumes == []  # none of them had an engine before


async def test_a_request_that_is_aborted_while_it_waits_is_no_longer_counted(
    desk: Any, serve_engine: Any, eventually: Any, metrics: Any
) -> None:
    desk.ask("dropped")
    assert desk.dispatcher.num_moving == 1
    desk.dispatcher.abort(["dropped"])
    assert desk.dispatcher.num_moving == 0
    engine = await serve_engine(**SCRIPT)
    await desk.meet(engine)
    kept = desk.ask("kept")
    await eventually(lambda: kept.is_over)
    assert [submit.request_id for submit in engine.core.submits] == ["kept"]


@pytest.fixture
def hasty_exchange(metrics: Any) -> Callable[[], Exchange]:
    return lambda: Exchange(
        model="coder", family=Family.OPENAI, timeout_s=0.05, keep_alive_s=15, metrics=metrics
    )


SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]


async def test_a_deadline_that_passes_without_an_engine_is_a_503(
    desk: Any, hasty_exchange: Any, new_client: Any, metrics: Any
) -> None:
    exchange, client = hasty_exchange(), new_client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        desk.ask("cmpl-1", exchange=exchange)
        await receive()
        await receive()  # until the exchange says that it is over

    await exchange.run(app, {"type": "http"}, b"", client.receive, client.send)
    assert client.status == 503
    assert client.headers[b"retry-after"] == b"5"
    assert json.loads(client.body)["error"]["code"] == "no_engine"
    assert metrics.ended == [("coder", "unavailable")]


async def test_a_deadline_that_passes_inside_a_stream_without_an_engine_is_its_last_event(
    desk: Any, serve_engine: Any, new_client: Any, hasty_exchange: Any,
    gate: Any, observed_core: Any, eventually: Any,
) -> None:  # fmt: skip
    engine = await serve_engine(core=observed_core(sleep=gate, num_tokens=FOREVER))
    await desk.meet(engine)
    exchange, client = hasty_exchange(), new_client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        stream = desk.ask("cmpl-1", exchange=exchange)
        gate.step()
        await eventually(lambda: stream.tokens)
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await engine.kill()
        await receive()
        await receive()

    await exchange.run(app, {"type": "http"}, b"", client.receive, client.send)
    assert client.status == 200
    assert client.is_complete
    assert client.pieces[0] == b"data: {}\n\n"
    assert client.pieces[1].startswith(b"event: error\ndata: ")
    assert json.loads(client.pieces[1].split(b"data: ")[1])["error"]["code"] == "no_engine"
    assert b"[DONE]" not in client.body


async def test_a_request_is_blocked_only_while_no_engine_is_connected(
    desk: Any, serve_engine: Any, hasty_exchange: Any, eventually: Any
) -> None:
    exchange = hasty_exchange()
    stream = desk.ask("cmpl-1", exchange=exchange)
    error = exchange.blocked_by()
    assert isinstance(error, NoEngine)
    assert error.retry_after_s == 5
    engine = await serve_engine(num_tokens=FOREVER)
    await desk.meet(engine)
    assert exchange.blocked_by() is None
    await eventually(lambda: stream.tokens)
    await engine.kill()
    await eventually(lambda: isinstance(exchange.blocked_by(), NoEngine))


@pytest.fixture
def serve_picky(serve_engine: Any, observed_core: Any) -> Any:
    """Start engines that refuse requests called odd."""

    class Picky(observed_core.Core):  # type: ignore[misc]
        async def add(self, wire_id: str, submit: Submit) -> None:
            if submit.request_id == "odd":
                raise ValueError("this core does not run odd requests")
            await super().add(wire_id, submit)

    async def serve(name: str) -> Any:
        return await serve_engine(engine=name, core=Picky(observed_core.model(**SCRIPT)))

    return serve


async def test_a_request_that_an_engine_cannot_run_fails_with_its_reason_without_a_retry(
    desk: Any, serve_picky: Any, eventually: Any
) -> None:
    await desk.meet(await serve_picky("e1"), await serve_picky("e2"))
    odd, even = desk.ask("odd"), desk.ask("even")
    await eventually(lambda: odd.is_over and even.is_over)
    assert isinstance(odd.error, EngineRefused)
    assert odd.error.engine in ("e1", "e2")
    assert odd.error.reason == "this core does not run odd requests"
    assert odd.flight.attempt == 0
    assert even.tokens == PLAYED


async def test_a_final_refusal_ends_only_the_request_that_was_refused(
    desk: Any, serve_picky: Any, eventually: Any
) -> None:
    await desk.meet(await serve_picky("e1"))
    others = [desk.ask(f"cmpl-{index}") for index in range(3)]
    odd = desk.ask("odd")
    await eventually(lambda: odd.is_over and all(stream.is_over for stream in others))
    assert [stream.tokens for stream in others] == [PLAYED] * 3


async def test_two_gateways_share_engines_under_the_same_request_ids(
    new_desk: Any, serve_engine: Any, eventually: Any
) -> None:
    engines = [await serve_engine(engine=name, **SCRIPT) for name in ("e1", "e2")]
    desks = [new_desk("gw-a"), new_desk("gw-b")]
    for desk in desks:
        await desk.meet(*engines)
    streams = [desk.ask(f"cmpl-{index}") for index in range(6) for desk in desks]
    await eventually(lambda: all(stream.tokens for stream in streams))
    await engines[0].kill()
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [PLAYED] * 12
    assert not engines[1].core.active


async def test_attempts_of_a_silent_gateway_are_stopped_and_counted(
    new_desk: Any, serve_engine: Any, relay: Any, eventually: Any
) -> None:
    wire = WireConfig(lease_s=1.5, heartbeat_s=0.02, connect_timeout_s=5)
    engine = await serve_engine(wire=wire, num_tokens=FOREVER)
    network = await relay(engine.record)
    silent, lively = new_desk("gw-silent", wire=wire), new_desk("gw-lively", wire=wire)
    await silent.meet(network)
    await lively.meet(engine)
    for name in ("x", "y"):
        silent.ask(name)
    kept = lively.ask("z")
    await eventually(lambda: len(engine.core.active) == 3)
    network.swallow()
    await eventually(lambda: engine.host.orphans == 2)
    await eventually(lambda: engine.core.names == {"z.0"})
    count = len(kept.tokens)
    await eventually(lambda: len(kept.tokens) > count)
    assert engine.host.orphans == 2


async def test_a_closed_gateway_leaves_nothing_running(
    new_desk: Any, serve_engine: Any, eventually: Any
) -> None:
    engines = [await serve_engine(engine=name, num_tokens=FOREVER) for name in ("e1", "e2")]
    desk = new_desk()
    await desk.meet(*engines)
    for index in range(6):
        desk.ask(f"cmpl-{index}")
    await eventually(lambda: all(engine.core.active for engine in engines))
    await asyncio.wait_for(desk.close(), 10)
    await eventually(lambda: not any(engine.core.active for engine in engines))
