"""Engines of one model with different max_model_len, as during a change of the limit."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.deployments.ingress.errors import LongerThanContext

FOREVER = 1_000_000


@pytest.fixture
def serve_limited(serve_engine: Any) -> Any:
    async def serve(name: str, limit: int, **script: Any) -> Any:
        script = {"num_tokens": FOREVER} | script
        return await serve_engine(engine=name, limits={"max_model_len": limit}, **script)

    return serve


async def test_the_limit_of_a_model_is_the_least_of_its_engines_and_follows_them(
    desk: Any, serve_limited: Any, eventually: Any
) -> None:
    large, small = await serve_limited("large", 512), await serve_limited("small", 256)
    await desk.meet(large)
    assert desk.dispatcher.description.max_model_len == 512
    await desk.meet(large, small)
    await eventually(lambda: desk.limits == [512, 256])
    assert desk.dispatcher.description.max_model_len == 256
    await small.kill()
    await eventually(lambda: desk.limits == [512, 256, 512])


async def test_a_long_prompt_goes_only_where_it_fits(
    desk: Any, serve_limited: Any, eventually: Any
) -> None:
    small, large = await serve_limited("small", 256), await serve_limited("large", 512)
    await desk.meet(small, large)
    streams = [desk.ask(f"cmpl-{i}", range(300)) for i in range(6)]
    await eventually(lambda: all(stream.tokens for stream in streams))
    assert len(large.core.submits) == 6
    assert small.core.submits == []
    short = [desk.ask(f"short-{i}") for i in range(6)]
    await eventually(lambda: all(stream.tokens for stream in short))
    assert small.core.submits


@pytest.mark.parametrize("prompt", [256, 300])
async def test_a_prompt_that_fits_nowhere_ends_at_once_with_the_limit(
    desk: Any, serve_limited: Any, prompt: int
) -> None:
    engine = await serve_limited("small", 256)
    await desk.meet(engine)
    stream = desk.ask("cmpl-1", range(prompt))
    assert isinstance(stream.error, LongerThanContext)
    assert (stream.error.tokens, stream.error.limit_tokens) == (prompt, 256)
    assert (stream.error.status, stream.error.code) == (400, "context_length_exceeded")
    assert engine.core.submits == []


async def test_a_stream_that_outgrew_the_engines_left_ends_and_shorter_ones_move(
    desk: Any, serve_limited: Any, eventually: Any
) -> None:
    doomed = await serve_limited("large", 4000)
    await desk.meet(doomed)
    grown, short = desk.ask("grown", range(250)), desk.ask("short")
    await eventually(lambda: grown.flight.length_tokens >= 256 and short.tokens)
    small = await serve_limited("small", 256 + len(short.tokens), num_tokens=FOREVER)
    await eventually(lambda: grown.flight.length_tokens > 600)
    await desk.meet(doomed, small)
    assert not grown.is_over, "its own engine has room"
    await doomed.kill()
    await eventually(lambda: grown.is_over and short.is_over)
    assert isinstance(grown.error, LongerThanContext)
    assert {submit.request_id for submit in small.core.submits} <= {"short"}


async def test_a_long_stream_that_waits_does_not_hold_up_shorter_ones(
    desk: Any, serve_limited: Any, eventually: Any, clock: Any
) -> None:
    large = await serve_limited("large", 512)
    small = await serve_limited("small", 256)
    await desk.meet(large, small)
    long = desk.ask("long", range(300), priority=-1)
    await eventually(lambda: long.tokens)
    draining = desk.link(large)
    draining.is_draining = True
    desk.dispatcher.on_news(draining)
    assert long.flight.link is draining, "it stays as long as its engine lives"
    short = desk.ask("short")
    await eventually(lambda: short.tokens)
    assert [submit.request_id for submit in small.core.submits] == ["short"]
    assert not long.is_over


async def test_without_any_engine_a_long_prompt_waits_like_any_other(
    desk: Any, serve_limited: Any, eventually: Any
) -> None:
    stream = desk.ask("cmpl-1", range(300))
    assert not stream.is_over
    await desk.meet(await serve_limited("large", 512))
    await eventually(lambda: stream.tokens)
