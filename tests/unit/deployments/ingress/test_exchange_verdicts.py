"""Tests what an exchange reports for the objectives: tokens, waiting in vain, deadlines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qwenfleet.deployments.ingress.exchange import current_exchange

SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
JSON_HEADERS = [(b"content-type", b"application/json")]


async def answer(send: Any) -> None:
    """Send a whole answer that is not streamed."""
    await send({"type": "http.response.start", "status": 200, "headers": JSON_HEADERS})
    await send({"type": "http.response.body", "body": b"{}", "more_body": False})


async def test_each_sequence_of_a_request_is_judged(
    new_exchange: Any, new_client: Any, metrics: Any, clock: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange = current_exchange()
        assert exchange is not None
        for gap_s in (None, 0.5):
            clock.advance(0.5)
            for _ in range(2):  # n=2: both come in one frame
                exchange.note_tokens(1, 0, clock(), gap_s)
        await answer(send)

    client = new_client()
    await new_exchange(clock=clock).run(app, SCOPE, b"", client.receive, client.send)
    assert (metrics.ttfts, metrics.gaps) == ([0.5, 0.5], [0.5, 0.5])


@pytest.mark.parametrize(
    ("has_token", "makes_tokens", "silence"),
    [(False, True, ("first", 9.0)), (True, True, ("next", 9.0)), (False, False, None)],
)
async def test_client_that_waits_in_vain_is_counted(
    new_exchange: Any,
    new_client: Any,
    metrics: Any,
    clock: Any,
    has_token: bool,
    makes_tokens: bool,
    silence: Any,
) -> None:
    client = new_client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange = current_exchange()
        assert exchange is not None
        if has_token:
            exchange.note_tokens(1, 0, clock(), None)
        clock.advance(9.0)
        client.hung_up.set()
        await receive()
        await receive()

    exchange = new_exchange(clock=clock, makes_tokens=makes_tokens)
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    assert metrics.ended == [("coder", "disconnected")]
    assert metrics.silences == ([silence] if silence else [])
    assert metrics.judged == [makes_tokens]


@pytest.mark.parametrize(
    ("is_clients", "outcome"), [(True, "client_deadline"), (False, "timed_out")]
)
async def test_deadline_chosen_by_the_client_is_not_our_failure(
    new_exchange: Any, new_client: Any, metrics: Any, is_clients: bool, outcome: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    client = new_client()
    exchange = new_exchange(timeout_s=0.01, is_clients_deadline=is_clients)
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    assert client.status == 504
    assert metrics.ended == [("coder", outcome)]
