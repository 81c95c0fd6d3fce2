"""Tests streams that are refused before their first event: the client gets a status."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from qwenfleet.deployments.ingress.answers import Family, keep_alive
from qwenfleet.deployments.ingress.errors import NoEngine
from qwenfleet.deployments.ingress.exchange import current_exchange

SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
CREATED = b'event: response.created\ndata: {"type": "response.created"}\n\n'


def event(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


@pytest.mark.parametrize("family", Family)
async def test_stream_that_finds_no_engine_is_a_503(
    new_exchange: Any, new_client: Any, metrics: Any, family: Family
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        exchange.fail(NoEngine("coder", 5))
        await asyncio.sleep(0)
        await send(event(b"data: late\n\n"))

    exchange, client = new_exchange(family=family), new_client()
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    assert (client.status, client.headers[b"retry-after"]) == (503, b"5")
    assert "no engine" in json.loads(client.body)["error"]["message"]
    assert client.is_complete
    assert metrics.ended == [("coder", "unavailable")]


async def test_stream_that_waits_past_its_deadline_is_a_504(
    new_exchange: Any, new_client: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await asyncio.sleep(60)

    client = new_client()
    await new_exchange(timeout_s=0.05).run(app, SCOPE, b"", client.receive, client.send)
    assert client.status == 504


async def test_stream_whose_app_fails_before_its_first_event_is_a_500(
    new_exchange: Any, new_client: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        raise RuntimeError("secret")

    client = new_client()
    await new_exchange().run(app, SCOPE, b"", client.receive, client.send)
    assert client.status == 500
    assert b"secret" not in client.body


async def test_stream_that_waits_for_an_engine_begins_with_its_first_keep_alive(
    new_exchange: Any, new_client: Any, metrics: Any
) -> None:
    """From then on a refusal is an event."""
    client = new_client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        assert client.messages == []
        await client.until_sent(2)
        exchange.fail(NoEngine("coder", 5))
        await asyncio.sleep(60)

    exchange = new_exchange(keep_alive_s=0.05)
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    assert client.status == 200
    assert client.body.startswith(keep_alive(Family.OPENAI) + b"event: error\n")


async def test_first_events_of_a_response_wait_for_an_engine(
    new_exchange: Any, new_client: Any
) -> None:
    """The Responses API announces a response before any engine has it."""
    client = new_client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange = current_exchange()
        assert exchange is not None
        await send(START)
        await send(event(CREATED))
        assert client.messages == []
        exchange.note_scheduled(0.0)
        await send(event(b"event: token\ndata: {}\n\n"))
        assert client.body.startswith(CREATED + b"event: token")
        exchange.fail(NoEngine("coder", 5))
        await asyncio.sleep(60)

    exchange = new_exchange(family=Family.RESPONSES)
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    *_, last = client.body.removesuffix(b"\n\n").split(b"\n\n")
    assert client.status == 200
    assert json.loads(last.partition(b"data: ")[2])["sequence_number"] == 2


async def test_response_that_finds_no_engine_is_a_503(new_exchange: Any, new_client: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(event(CREATED))
        exchange.fail(NoEngine("coder", 5))
        await asyncio.sleep(60)

    exchange, client = new_exchange(family=Family.RESPONSES), new_client()
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    assert client.status == 503
    assert CREATED not in client.body
