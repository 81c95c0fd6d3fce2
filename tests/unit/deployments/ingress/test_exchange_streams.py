"""Tests streams: keep-alives while they are silent, and clients that disconnect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from qwenfleet.deployments.ingress import exchange as module
from qwenfleet.deployments.ingress.answers import Family, keep_alive
from qwenfleet.deployments.ingress.exchange import Exchange

SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream")],
}
PLAIN = START | {"headers": [(b"content-type", b"application/json")]}
GRACE_S = module.ABORT_GRACE_S


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABORT_GRACE_S", 0.2)


@pytest.fixture
def new_exchange(new_exchange: Callable[..., Exchange]) -> Callable[..., Exchange]:
    """Return a factory of exchanges whose streams get a keep-alive after 50 ms of silence."""
    return partial(new_exchange, keep_alive_s=0.05)


def piece(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


@pytest.mark.parametrize("family", Family)
async def test_silent_stream_gets_keep_alives_until_its_next_event(
    new_exchange: Any, new_client: Any, family: Family
) -> None:
    client = new_client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await client.until_sent(1 + 3)  # three keep-alives
        await send(piece(b"data: token\n\n"))
        await send(piece(b"data: [DONE]\n\n", more=False))

    await new_exchange(family=family).run(app, SCOPE, b"", client.receive, client.send)
    assert client.pieces[:3] == [keep_alive(family)] * 3
    assert client.pieces[-2:] == [b"data: token\n\n", b"data: [DONE]\n\n"]
    assert set(client.pieces[3:-2]) <= {keep_alive(family)}


async def test_active_stream_gets_no_keep_alive(new_exchange: Any, new_client: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for _ in range(20):
            await asyncio.sleep(0.02)
            await send(piece(b"data: token\n\n"))
        await send(piece(b"", more=False))

    client = new_client()
    await new_exchange(keep_alive_s=0.3).run(app, SCOPE, b"", client.receive, client.send)
    assert b"ping" not in client.body


async def test_keep_alive_never_splits_an_event(new_exchange: Any, new_client: Any) -> None:
    client = new_client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(piece(b'data: {"text": "a'))
        await asyncio.sleep(0.2)
        await send(piece(b' b"}\n'))
        await asyncio.sleep(0.2)
        await send(piece(b"\n"))
        await send(piece(b"data: whole\n\n"))
        count = len(client.messages)
        await client.until_sent(count + 1)
        await send(piece(b"", more=False))

    await new_exchange().run(app, SCOPE, b"", client.receive, client.send)
    assert client.body.startswith(b'data: {"text": "a b"}\n\ndata: whole\n\n: ping\n\n')


async def test_plain_answer_gets_no_keep_alive(new_exchange: Any, new_client: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.15)
        await send(PLAIN)
        await asyncio.sleep(0.15)
        await send(piece(b"{}", more=False))

    client = new_client()
    await new_exchange().run(app, SCOPE, b"", client.receive, client.send)
    assert client.body == b"{}"


async def test_finished_stream_gets_no_keep_alive_while_its_app_still_runs(
    new_exchange: Any, new_client: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(piece(b"data: [DONE]\n\n", more=False))
        await asyncio.sleep(0.2)

    client = new_client()
    await new_exchange().run(app, SCOPE, b"", client.receive, client.send)
    assert client.body == b"data: [DONE]\n\n"


class Apps:
    """Apps that are interrupted while they work, and record how they ended."""

    def __init__(self) -> None:
        self.is_running = asyncio.Event()
        self.ends: list[str] = []

    async def listens(self, scope: Any, receive: Any, send: Any) -> None:
        """Wait for the disconnect, as vLLM does for a plain answer."""
        await receive()
        self.is_running.set()
        message = await receive()
        self.ends.append(message["type"])

    async def is_deaf(self, scope: Any, receive: Any, send: Any) -> None:
        """Wait until cancelled, as a stream that waits for its engine."""
        await send(START)
        self.is_running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise

    async def talks_on(self, scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        self.is_running.set()
        try:
            while True:
                await send(piece(b"data: token\n\n"))
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise


KINDS = [("listens", "http.disconnect"), ("is_deaf", "cancelled"), ("talks_on", "cancelled")]


@pytest.mark.parametrize(("kind", "end"), KINDS)
async def test_disconnect_ends_the_app_within_two_seconds(
    new_exchange: Any,
    new_client: Any,
    metrics: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    end: str,
) -> None:
    monkeypatch.setattr(module, "ABORT_GRACE_S", GRACE_S)
    apps, client = Apps(), new_client()
    run = new_exchange().run(getattr(apps, kind), SCOPE, b"", client.receive, client.send)
    running = asyncio.create_task(run)
    await apps.is_running.wait()
    client.hung_up.set()
    left_at = time.monotonic()
    await running
    assert time.monotonic() - left_at < 2
    assert apps.ends == [end]
    assert metrics.ended == [("coder", "disconnected")]


@pytest.mark.parametrize(("kind", "end"), KINDS)
async def test_cancelled_request_ends_the_app_within_two_seconds(
    new_exchange: Any, new_client: Any, metrics: Any, kind: str, end: str
) -> None:
    apps, client = Apps(), new_client()
    run = new_exchange().run(getattr(apps, kind), SCOPE, b"", client.receive, client.send)
    running = asyncio.create_task(run)
    await apps.is_running.wait()
    running.cancel()
    left_at = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - left_at < 2
    assert apps.ends == [end]
    assert metrics.ended == [("coder", "disconnected")]


async def test_request_cancelled_twice_leaves_no_app_running(
    new_exchange: Any, new_client: Any, eventually: Any
) -> None:
    apps, client = Apps(), new_client()
    run = new_exchange().run(apps.is_deaf, SCOPE, b"", client.receive, client.send)
    running = asyncio.create_task(run)
    await apps.is_running.wait()
    running.cancel()
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: apps.ends == ["cancelled"])


async def test_nothing_is_sent_to_a_disconnected_client(new_exchange: Any, new_client: Any) -> None:
    apps, client = Apps(), new_client()
    run = new_exchange().run(apps.talks_on, SCOPE, b"", client.receive, client.send)
    running = asyncio.create_task(run)
    await apps.is_running.wait()
    client.hung_up.set()
    await asyncio.sleep(0.05)
    count = len(client.messages)
    await running
    assert len(client.messages) == count
