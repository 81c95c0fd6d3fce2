"""Tests one request through hand-written apps: answers, losses, deadlines and failing apps."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from qwenfleet.deployments.ingress import exchange as module
from qwenfleet.deployments.ingress.answers import Family
from qwenfleet.deployments.ingress.errors import NoEngine, RequestKillsEngines
from qwenfleet.deployments.ingress.exchange import current_exchange

LOST = RequestKillsEngines("coder")
SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
JSON_HEADERS = [(b"content-type", b"application/json"), (b"x-request-id", b"7")]
SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABORT_GRACE_S", 0.1)


async def start(send: Any, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def put(send: Any, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def events(body: bytes) -> list[str]:
    assert body.endswith(b"\n\n")
    return body.decode().removesuffix("\n\n").split("\n\n")


async def test_plain_answer_passes_unchanged(
    new_exchange: Any, new_client: Any, metrics: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope is SCOPE
        request = await receive()
        assert request == {"type": "http.request", "body": b'{"x":1}', "more_body": False}
        await start(send, 200, JSON_HEADERS)
        await put(send, b'{"answer": ')
        await put(send, b"42}", more=False)

    client = new_client()
    await new_exchange().run(app, SCOPE, b'{"x":1}', client.receive, client.send)
    assert client.status == 200
    assert client.messages[0]["headers"] == JSON_HEADERS
    assert client.pieces == [b'{"answer": ', b"42}"]
    assert client.is_complete
    assert metrics.ended == [("coder", "completed")]
    assert len(metrics.durations) == 1


@pytest.mark.parametrize(
    ("status", "outcome"), [(400, "refused"), (422, "refused"), (500, "failed")]
)
async def test_error_answer_of_the_app_passes_and_is_counted(
    new_exchange: Any, new_client: Any, metrics: Any, status: int, outcome: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send, status, JSON_HEADERS)
        await put(send, b'{"error": "own"}', more=False)

    client = new_client()
    await new_exchange().run(app, SCOPE, b"", client.receive, client.send)
    assert (client.status, client.body) == (status, b'{"error": "own"}')
    assert metrics.ended == [("coder", outcome)]
    assert metrics.durations == []


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            Family.OPENAI,
            {
                "error": {
                    "message": str(LOST),
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "request_kills_engines",
                }
            },
        ),
        (
            Family.ANTHROPIC,
            {"type": "error", "error": {"type": "invalid_request_error", "message": str(LOST)}},
        ),
    ],
)
async def test_error_before_the_first_byte_sets_the_status(
    new_exchange: Any, new_client: Any, metrics: Any, family: Family, expected: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange.fail(LOST)
        exchange.fail(NoEngine("coder", 5))  # the first error counts
        await asyncio.sleep(0)
        await start(send, 200, JSON_HEADERS)
        await put(send, b"too late", more=False)

    exchange, client = new_exchange(family=family), new_client()
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    assert client.status == 422
    assert client.headers[b"content-type"] == b"application/json"
    assert json.loads(client.body) == expected
    assert metrics.ended == [("coder", "engine_lost")]


async def test_no_engine_has_retry_after(new_exchange: Any, new_client: Any, metrics: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange.fail(NoEngine("coder", 5))
        raise RuntimeError("what vLLM makes of it")

    exchange, client = new_exchange(), new_client()
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    assert (client.status, client.headers[b"retry-after"]) == (503, b"5")
    assert json.loads(client.body)["error"]["code"] == "no_engine"
    assert metrics.ended == [("coder", "unavailable")]


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("sent", [b'data: {"a":1}\n\n', b'data: {"a":1}\n\ndata: {"b'])
async def test_error_inside_a_stream_is_its_last_event(
    new_exchange: Any, new_client: Any, metrics: Any, family: Family, sent: bytes
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange.note_scheduled(0.0)
        await start(send, 200, SSE_HEADERS)
        await put(send, sent)
        exchange.fail(LOST)
        for _ in range(3):
            await put(send, b"data: late\n\n")
            await asyncio.sleep(0.01)
        await put(send, b"data: [DONE]\n\n", more=False)

    exchange, client = new_exchange(family=family), new_client()
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    assert client.status == 200
    assert client.is_complete
    assert client.body.startswith(sent)
    *_, last = events(client.body)
    name, data = last.split("\n")
    assert name == "event: error"
    assert str(LOST) in json.dumps(json.loads(data.removeprefix("data: ")))
    assert client.body.count(b"event: error") == 1
    assert b"late" not in client.body
    assert b"[DONE]" not in client.body
    assert metrics.ended == [("coder", "engine_lost")]


async def test_failure_after_the_answer_changes_nothing(new_exchange: Any, new_client: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200, SSE_HEADERS)
        await put(send, b"data: [DONE]\n\n", more=False)
        exchange.fail(LOST)

    exchange, client = new_exchange(), new_client()
    await exchange.run(app, SCOPE, b"", client.receive, client.send)
    assert client.body == b"data: [DONE]\n\n"


async def test_deadline_before_the_first_byte_is_a_504(
    new_exchange: Any, new_client: Any, metrics: Any
) -> None:
    was_stopped = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            was_stopped.set()

    client = new_client()
    await new_exchange(timeout_s=0.05).run(app, SCOPE, b"", client.receive, client.send)
    assert client.status == 504
    assert json.loads(client.body)["error"]["code"] == "timeout"
    assert "0.05 s" in json.loads(client.body)["error"]["message"]
    assert was_stopped.is_set()
    assert metrics.ended == [("coder", "timed_out")]


async def test_deadline_inside_a_stream_is_its_last_event(
    new_exchange: Any, new_client: Any, metrics: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200, SSE_HEADERS)
        while True:
            await put(send, b"data: token\n\n")
            await asyncio.sleep(0.01)

    client = new_client()
    await new_exchange(timeout_s=0.1).run(app, SCOPE, b"", client.receive, client.send)
    *tokens, last = events(client.body)
    assert set(tokens) == {"data: token"}
    assert json.loads(last.split("data: ")[1])["error"]["code"] == "timeout"
    assert client.is_complete
    assert metrics.ended == [("coder", "timed_out")]


async def test_client_that_stops_reading_holds_nothing_past_the_deadline(
    new_exchange: Any, new_client: Any, metrics: Any
) -> None:
    was_stopped = asyncio.Event()

    class Stuck(new_client):  # type: ignore[misc]
        async def send(self, message: Any) -> None:
            await super().send(message)
            if len(self.messages) > 1:
                await asyncio.Event().wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await start(send, 200, SSE_HEADERS)
            await put(send, b"data: token\n\n")
        finally:
            was_stopped.set()

    client = Stuck()
    run = new_exchange(timeout_s=0.1, keep_alive_s=0.02).run(
        app, SCOPE, b"", client.receive, client.send
    )
    await asyncio.wait_for(run, 5)
    assert was_stopped.is_set()
    assert b"ping" not in client.body
    assert metrics.ended == [("coder", "timed_out")]


async def no_answer(scope: Any, receive: Any, send: Any) -> None:
    pass


async def error(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("secret prompt in secret.py")


async def cancels_itself(scope: Any, receive: Any, send: Any) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("app", [error, cancels_itself, no_answer])
async def test_failing_app_is_a_500_without_a_stack_trace(
    new_exchange: Any, new_client: Any, metrics: Any, app: Any
) -> None:
    client = new_client()
    await new_exchange().run(app, SCOPE, b"", client.receive, client.send)
    assert client.status == 500
    assert json.loads(client.body)["error"]["code"] == "internal_error"
    assert b"secret" not in client.body
    assert b"Traceback" not in client.body
    assert client.is_complete
    assert metrics.ended == [("coder", "failed")]


@pytest.mark.parametrize("app_end", [error, cancels_itself, no_answer])
async def test_app_that_fails_inside_a_stream_ends_it_with_an_error(
    new_exchange: Any, new_client: Any, metrics: Any, app_end: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200, SSE_HEADERS)
        await put(send, b"data: token\n\n")
        await app_end(scope, receive, send)

    client = new_client()
    await new_exchange().run(app, SCOPE, b"", client.receive, client.send)
    token, last = events(client.body)
    assert token == "data: token"
    assert last.startswith("event: error\n")
    assert client.is_complete
    assert metrics.ended == [("coder", "failed")]


async def test_app_that_fails_after_its_answer_is_only_counted(
    new_exchange: Any, new_client: Any, metrics: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200, JSON_HEADERS)
        await put(send, b"{}", more=False)
        raise RuntimeError("too late to say")

    client = new_client()
    await new_exchange().run(app, SCOPE, b"", client.receive, client.send)
    assert (client.status, client.body) == (200, b"{}")
    assert metrics.ended == [("coder", "failed")]


async def test_tokens_are_counted_with_ttft_and_gaps(
    new_exchange: Any, new_client: Any, metrics: Any, clock: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange = current_exchange()
        assert exchange is not None
        exchange.note_prompt(100)
        exchange.note_scheduled(clock() + 0.75)
        exchange.note_scheduled(clock() + 7)  # of another attempt
        for count, cached, gap_s in ((0, 0, 1.0), (1, 64, 0.5), (3, 0, 0.25), (1, 0, 0.125)):
            clock.advance(gap_s)
            exchange.note_tokens(count, cached, clock(), None if cached else gap_s)
        await start(send, 200, JSON_HEADERS)
        await put(send, b"{}", more=False)

    client = new_client()
    await new_exchange(clock=clock).run(app, SCOPE, b"", client.receive, client.send)
    assert metrics.counted == {"prompt": 100, "cached": 64, "output": 5}
    assert metrics.queues == [0.75]
    assert metrics.ttfts == [1.5]
    assert metrics.gaps == [0.25, 0.125]
    assert metrics.durations == [1.875]
    assert current_exchange() is None


async def test_concurrent_requests_get_their_own_exchange(
    new_exchange: Any, new_client: Any
) -> None:
    found: dict[str, Any] = {}
    both_run = asyncio.Barrier(2)

    def app_for(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await both_run.wait()
            found[name] = current_exchange()
            await start(send, 200, JSON_HEADERS)
            await put(send, b"{}", more=False)

        return app

    exchanges = {name: new_exchange() for name in ("a", "b")}
    async with asyncio.TaskGroup() as tasks:
        for name, exchange in exchanges.items():
            client = new_client()
            tasks.create_task(exchange.run(app_for(name), SCOPE, b"", client.receive, client.send))
    assert found == exchanges
