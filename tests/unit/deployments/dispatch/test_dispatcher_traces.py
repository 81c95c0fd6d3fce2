"""The spans of a request's attempts, at its gateway and in the engines, over real hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from qwenfleet.deployments.engine_host.core import CoreStep
from qwenfleet.deployments.ingress.answers import Family
from qwenfleet.deployments.ingress.exchange import Exchange
from qwenfleet.deployments.telemetry.null_attempt import NO_ATTEMPT_SPAN

SCRIPT = {"tokens": tuple(range(60)), "num_tokens": 60}
FOREVER = 1_000_000
SCOPE = {"method": "POST", "path": "/v1/completions", "headers": []}


@pytest.fixture
def traced(metrics: Any, recorder: Any) -> Callable[..., Exchange]:
    """Exchanges with a span."""

    def traced(**headers: bytes) -> Exchange:
        scope = {**SCOPE, "headers": [(name.encode(), value) for name, value in headers.items()]}
        return Exchange(
            model="coder",
            family=Family.OPENAI,
            timeout_s=60,
            keep_alive_s=15,
            metrics=metrics,
            span=recorder.spans.request(scope),
        )

    return traced


def is_error(span: Any) -> bool:
    return span.status.status_code is StatusCode.ERROR


def events(span: Any) -> list[str]:
    return [event.name for event in span.events]


async def ended(recorder: Any, exchange: Exchange) -> Any:
    """The request's own span, after the engines have reported all of theirs."""
    assert exchange.span is not None
    with exchange.span:
        pass
    async with asyncio.timeout(10):
        while recorder.started > len(recorder.ended):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return recorder.only("POST /v1/completions")


async def test_the_attempts_span_is_a_child_of_the_request_and_parent_of_the_engines(
    new_desk: Any, serve_engine: Any, recorder: Any, traced: Any, eventually: Any
) -> None:
    engine = await serve_engine(spans=recorder.spans, num_tokens=5)
    desk = new_desk()
    await desk.meet(engine)
    exchange = traced()
    stream = desk.ask("cmpl-1", exchange=exchange)
    await eventually(lambda: stream.is_over)
    request = await ended(recorder, exchange)
    attempt, host = recorder.only("attempt"), recorder.only("engine")
    assert attempt.parent.span_id == request.context.span_id
    assert host.parent.span_id == attempt.context.span_id
    assert host.context.trace_id == attempt.context.trace_id == request.context.trace_id
    assert (attempt.kind, host.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
    for span in (attempt, host):
        assert events(span) == ["first_token"]
        assert not is_error(span)
        assert (
            dict(span.attributes).items()
            >= {
                "qwenfleet.engine": "engine-1",
                "qwenfleet.request": "cmpl-1",
                "qwenfleet.attempt": 0,
                "qwenfleet.tokens_before": 0,
                "qwenfleet.end": "stop",
                "gen_ai.response.finish_reasons": ("stop",),
                "gen_ai.usage.output_tokens": 5,
            }.items()
        )
    assert host.attributes["gen_ai.request.model"] == "coder"
    assert not attempt.links
    # The core gets the context of its host's span.
    (submit,) = engine.core.submits
    assert f"-{host.context.span_id:016x}-" in submit.trace_headers["traceparent"]


async def test_a_resumed_stream_has_two_attempts_and_the_second_records_the_cause(
    new_desk: Any, serve_engine: Any, recorder: Any, traced: Any, eventually: Any
) -> None:
    doomed = await serve_engine(engine="doomed", num_tokens=FOREVER)
    desk = new_desk()
    await desk.meet(doomed)
    exchange = traced()
    stream = desk.ask("cmpl-1", max_tokens=40, exchange=exchange)
    await eventually(lambda: len(stream.tokens) >= 3)
    safe = await serve_engine(engine="safe", **SCRIPT)
    await desk.meet(doomed, safe)
    await doomed.kill()
    await eventually(lambda: stream.is_over)
    request = await ended(recorder, exchange)
    first, second = recorder.named("attempt")
    assert first.parent.span_id == second.parent.span_id == request.context.span_id
    assert is_error(first)
    assert (first.attributes["qwenfleet.end"], first.attributes["error.type"]) == ("reset",) * 2
    assert first.status.description
    assert first.end_time <= second.start_time
    (link,) = second.links
    assert link.context.span_id == first.context.span_id
    assert link.attributes == {"qwenfleet.loss": "reset"}
    resumed = second.attributes
    assert (resumed["qwenfleet.moved_by"], resumed["qwenfleet.moved_from"]) == ("reset", "doomed")
    assert (resumed["qwenfleet.engine"], resumed["qwenfleet.attempt"]) == ("safe", 1)
    assert resumed["qwenfleet.tokens_before"] == first.attributes["gen_ai.usage.output_tokens"] >= 3
    assert resumed["qwenfleet.tokens_before"] + resumed["gen_ai.usage.output_tokens"] == 40
    assert resumed["qwenfleet.gap_s"] >= 0
    assert events(first) == events(second) == ["first_token"]
    assert resumed["qwenfleet.end"] == "length"
    assert not is_error(second)


async def test_a_drained_attempt_is_not_an_error(
    new_desk: Any, serve_engine: Any, recorder: Any, traced: Any, eventually: Any
) -> None:
    leaving = await serve_engine(engine="leaving", spans=recorder.spans, num_tokens=FOREVER)
    desk = new_desk()
    await desk.meet(leaving)
    exchange = traced()
    stream = desk.ask("cmpl-1", max_tokens=40, exchange=exchange)
    await eventually(lambda: len(stream.tokens) >= 3)
    await desk.meet(leaving, await serve_engine(engine="staying", **SCRIPT))
    await leaving.host.drain("scaled down", 10)
    await eventually(lambda: stream.is_over)
    await ended(recorder, exchange)
    first, second = recorder.named("attempt")
    assert not is_error(first)
    assert first.attributes["qwenfleet.end"] == second.attributes["qwenfleet.moved_by"] == "drained"
    assert recorder.only("engine").attributes["qwenfleet.end"] == "stopped"


async def test_the_span_of_an_aborted_request_ends_as_aborted(
    new_desk: Any, serve_engine: Any, recorder: Any, traced: Any, eventually: Any
) -> None:
    desk = new_desk()
    await desk.meet(await serve_engine(spans=recorder.spans, num_tokens=FOREVER))
    exchange = traced()
    stream = desk.ask("cmpl-1", exchange=exchange)
    await eventually(lambda: stream.tokens)
    desk.dispatcher.abort(["cmpl-1"])
    await ended(recorder, exchange)
    attempt, host = recorder.only("attempt"), recorder.only("engine")
    assert (attempt.attributes["qwenfleet.end"], is_error(attempt)) == ("aborted", False)
    assert (host.attributes["qwenfleet.end"], is_error(host)) == ("stopped", False)


async def test_the_span_of_a_rejected_attempt_is_an_error(
    new_desk: Any, serve_engine: Any, recorder: Any, traced: Any, eventually: Any,
    observed_core: Any,
) -> None:  # fmt: skip
    class Picky(observed_core.Core):  # type: ignore[misc]
        async def add(self, wire_id: str, submit: Any) -> None:
            raise ValueError("not that one")

    desk = new_desk()
    await desk.meet(await serve_engine(spans=recorder.spans, core=Picky(observed_core.model())))
    exchange = traced()
    stream = desk.ask("cmpl-1", exchange=exchange)
    await eventually(lambda: stream.error is not None)
    await ended(recorder, exchange)
    attempt, host = recorder.only("attempt"), recorder.only("engine")
    assert is_error(attempt)
    assert attempt.attributes["qwenfleet.end"] == "engine_refused"
    assert is_error(host)
    assert host.attributes["qwenfleet.end"] == "rejected"


async def test_a_core_that_dies_ends_the_spans_of_its_host(
    new_desk: Any, serve_engine: Any, recorder: Any, traced: Any, eventually: Any, gate: Any,
    observed_core: Any,
) -> None:  # fmt: skip
    engine = await serve_engine(spans=recorder.spans, core=observed_core(sleep=gate, **SCRIPT))
    desk = new_desk()
    await desk.meet(engine)
    exchange = traced()
    stream = desk.ask("cmpl-1", exchange=exchange)
    gate.step(2)
    await eventually(lambda: stream.tokens)
    gate.blow()
    await eventually(lambda: recorder.ended and stream.flight.link is None)
    await desk.close()
    await ended(recorder, exchange)
    for span in (recorder.only("engine"), recorder.only("attempt")):
        assert is_error(span)
        assert span.attributes["qwenfleet.end"] == "core_died"


async def test_a_gateway_ends_the_spans_of_its_attempts_at_shutdown(
    new_desk: Any, serve_engine: Any, recorder: Any, traced: Any, eventually: Any
) -> None:
    desk = new_desk()
    await desk.meet(await serve_engine(num_tokens=FOREVER))
    exchange = traced()
    stream = desk.ask("cmpl-1", exchange=exchange)
    await eventually(lambda: stream.tokens)
    await desk.close()
    await ended(recorder, exchange)
    assert recorder.only("attempt").attributes["qwenfleet.end"] == "aborted"


async def test_the_time_at_which_a_core_scheduled_a_request_is_recorded_afterwards(
    new_desk: Any, serve_engine: Any, recorder: Any, traced: Any, eventually: Any,
    observed_core: Any,
) -> None:  # fmt: skip
    class Telling(observed_core.Core):  # type: ignore[misc]
        async def next_step(self) -> CoreStep:
            step = await super().next_step()
            now = asyncio.get_running_loop().time()  # monotonic, as the host's clock
            firsts = [output.wire_id for output in step.outputs if output.cached_tokens is not None]
            return step._replace(scheduled=[(wire_id, now - 5.0) for wire_id in firsts])

    core = Telling(observed_core.model(num_tokens=3))
    desk = new_desk()
    await desk.meet(await serve_engine(spans=recorder.spans, core=core))
    exchange = traced()
    stream = desk.ask("cmpl-1", exchange=exchange)
    await eventually(lambda: stream.is_over)
    await ended(recorder, exchange)
    times = {event.name: event.timestamp for event in recorder.only("engine").events}
    assert times["first_token"] - times["scheduled"] == pytest.approx(5e9, abs=1e9)


async def test_a_request_that_is_not_sampled_puts_nothing_on_the_wire(
    new_desk: Any, serve_engine: Any, recorder: Any, traced: Any, eventually: Any
) -> None:
    engine = await serve_engine(spans=recorder.spans, num_tokens=3)
    desk = new_desk()
    await desk.meet(engine)
    parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    streams = [
        desk.ask("unsampled", exchange=traced(traceparent=parent)),
        desk.ask("outside any exchange"),
    ]
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [submit.trace_headers for submit in engine.core.submits] == [None, None]
    assert recorder.started == 0
    assert all(stream.flight.span is NO_ATTEMPT_SPAN for stream in streams)
