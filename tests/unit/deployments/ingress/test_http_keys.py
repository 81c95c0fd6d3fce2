"""Tests the key check of the gateway: refusals in each API's format, before a body is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
import uvicorn

from qwenfleet.cluster.config.auth import AuthConfig, hash_of
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.ingress.http_app import MODEL_ROUTES, GatewayApp
from qwenfleet.deployments.telemetry.tracing import NO_SPANS

KEY = "qf-mine-0123456789-0123456789-0123456789-01234"
WRONG = "qf-hers-0123456789-0123456789-0123456789-01234"
BODY = b'{"model": "coder", "messages": [], "input_prefix": "", "input_suffix": ""}'
OPENAI_ROUTES = sorted(route for route in MODEL_ROUTES if not route.startswith("/v1/messages"))


class FakeApp:
    """An app that records the headers it receives."""

    def __init__(self) -> None:
        self.headers: list[list[tuple[bytes, bytes]]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers.append(list(scope["headers"]))
        await receive()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


class OneEngine:
    """Stands in for a model's engines."""

    description = None
    num_engines = 1
    num_moving = 0

    def end_waiting(self) -> None:
        raise AssertionError("an engine is there")


@pytest.fixture
def inner_app() -> FakeApp:
    return FakeApp()


def app_of(metrics: Any, inner_app: FakeApp, auth: Any, spans: Any = NO_SPANS) -> GatewayApp:
    config = FleetConfig(models=(ModelConfig(id="coder", engine="scripted"),), auth=auth)
    app = GatewayApp(config, metrics, spans)
    app.models["coder"].app = inner_app
    app.models["coder"].engines = OneEngine()
    return app


@pytest.fixture
def app(metrics: Any, inner_app: FakeApp) -> GatewayApp:
    return app_of(metrics, inner_app, AuthConfig(keys=(hash_of(KEY),)))


@pytest.fixture
def ask(new_client: Any) -> Any:
    """Return a function that sends no body: code that waits for one hangs and fails the test."""

    async def ask(
        app: GatewayApp, path: str, *headers: tuple[bytes, bytes], method: str = "POST", body: Any
    ) -> Any:
        client = new_client(*body)
        scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        await asyncio.wait_for(app(scope, client.receive, client.send), 10)
        assert client.is_complete
        return client

    return ask


@pytest.mark.parametrize("path", OPENAI_ROUTES)
@pytest.mark.parametrize(
    ("headers", "outcome"),
    [([], "no_key"), ([(b"authorization", b"Bearer " + WRONG.encode())], "wrong_key")],
)
async def test_openai_clients_are_refused_before_their_body_is_read(
    app: GatewayApp, ask: Any, metrics: Any, path: str, headers: Any, outcome: str
) -> None:
    client = await ask(app, path, *headers, body=())
    error = json.loads(client.body)["error"]
    assert client.status == 401
    assert client.headers[b"www-authenticate"] == b"Bearer"
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert WRONG not in str(client.messages)
    assert metrics.ended == [("none", outcome)]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("headers", [[], [(b"x-api-key", WRONG.encode())]])
async def test_anthropic_clients_are_refused_in_anthropics_format(
    app: GatewayApp, ask: Any, path: str, headers: Any
) -> None:
    client = await ask(app, path, *headers, body=())
    reported = json.loads(client.body)
    assert client.status == 401
    assert client.headers[b"www-authenticate"] == b"Bearer"
    assert (reported["type"], reported["error"]["type"]) == ("error", "authentication_error")
    assert WRONG not in str(client.messages)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models"), ("GET", "/x"), ("OPTIONS", "/v1/messages")]
)
async def test_without_a_key_the_fleet_reveals_nothing(
    app: GatewayApp, ask: Any, metrics: Any, method: str, path: str
) -> None:
    client = await ask(app, path, method=method, body=())
    assert client.status == 401
    assert b"coder" not in client.body
    assert metrics.ended == [("none", "no_key")]


async def test_with_a_key_models_are_listed(app: GatewayApp, ask: Any, metrics: Any) -> None:
    header = (b"authorization", b"Bearer " + KEY.encode())
    client = await ask(app, "/v1/models", header, method="GET", body=())
    assert client.status == 200
    assert b"coder" in client.body
    assert metrics.ended == []


async def test_health_needs_no_key_over_the_app(app: GatewayApp, ask: Any, metrics: Any) -> None:
    live = await ask(app, "/health/live", method="GET", body=())
    ready = await ask(app, "/health/ready", method="GET", body=())
    assert (live.status, ready.status) == (200, 200)
    assert metrics.ended == []


@pytest.mark.parametrize("path", sorted(MODEL_ROUTES))
@pytest.mark.parametrize("name", [b"authorization", b"x-api-key"])
async def test_app_never_sees_the_key_of_an_answered_request(
    app: GatewayApp, inner_app: FakeApp, ask: Any, path: str, name: bytes
) -> None:
    value = KEY.encode() if name == b"x-api-key" else b"bearer " + KEY.encode()
    client = await ask(app, path, (b"accept", b"*/*"), (name, value), body=(BODY,))
    assert client.status == 200
    assert inner_app.headers == [[(b"accept", b"*/*")]]


async def test_span_has_no_key(metrics: Any, inner_app: FakeApp, ask: Any, recorder: Any) -> None:
    app = app_of(metrics, inner_app, AuthConfig(keys=(hash_of(KEY),)), recorder.spans)
    headers = [(b"x-api-key", KEY.encode()), (b"authorization", b"Bearer " + KEY.encode())]
    assert (await ask(app, "/v1/completions", *headers, body=(BODY,))).status == 200
    assert KEY not in recorder.only("POST /v1/completions").to_json()
    assert not {name for name, _ in inner_app.headers[0]} & {b"authorization", b"x-api-key"}


@pytest.mark.parametrize("auth", [None, "none"])
async def test_without_keys_a_placeholder_is_accepted_and_removed(
    metrics: Any, inner_app: FakeApp, ask: Any, auth: Any
) -> None:
    app = app_of(metrics, inner_app, auth)
    header = (b"authorization", b"Bearer none")
    assert (await ask(app, "/v1/completions", header, body=(BODY,))).status == 200
    assert inner_app.headers == [[]]


@pytest_asyncio.fixture
async def port(app: GatewayApp) -> AsyncIterator[int]:
    """Run the application with the HTTP server that Serve's replicas use."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield int(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    await task


async def exchange(port: int, request: bytes) -> bytes:
    """Return the server's answer to this request, up to its body or the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    reported = b""
    try:
        async with asyncio.timeout(10):
            while (
                b'"code"' not in reported
                and b"{}" not in reported
                and (part := await reader.read(9999))
            ):
                reported += part
    finally:
        writer.close()
        await writer.wait_closed()
    return reported


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def test_over_http_a_refusal_comes_before_the_body_is_sent(port: int) -> None:
    reported = await exchange(port, HEAD + b"Content-Length: 1000000\r\n\r\n")
    assert reported.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer\r\n" in reported
    assert b"invalid_api_key" in reported


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"AUTHORIZATION: BEARER %s", 200),
        (b"authorization:Bearer   %s  ", 200),
        (b"X-Api-Key:\t%s", 200),
        (b"Authorization: Token %s", 401),
        (b"Authorization: Bearer %sx", 401),
        (b"X-Api-Key: \xe9%s", 401),
    ],
)
async def test_over_http_headers_are_parsed_before_the_check(
    port: int, header: bytes, status: int
) -> None:
    length = b"Content-Length: %d\r\n" % len(BODY)
    reported = await exchange(port, HEAD + length + header % KEY.encode() + b"\r\n\r\n" + BODY)
    assert reported.startswith(b"HTTP/1.1 %d " % status)


async def openai_models(port: int, key: str) -> list[str]:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=key, timeout=10
    ) as client:
        return [model.id async for model in client.models.list()]


async def test_openai_sdk_authenticates(port: int) -> None:
    assert await openai_models(port, KEY) == ["coder"]
    with pytest.raises(openai.AuthenticationError) as caught:
        await openai_models(port, WRONG)
    assert caught.value.code == "invalid_api_key"
    assert WRONG not in str(caught.value)


@pytest.mark.parametrize("kind", ["api_key", "auth_token"])
async def test_anthropic_sdk_authenticates(
    port: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK sends `api_key` as x-api-key and `auth_token` as a bearer token."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    async def count(key: str) -> Any:
        client: Any = anthropic.AsyncAnthropic
        async with client(base_url=f"http://127.0.0.1:{port}", timeout=10, **{kind: key}) as asking:
            messages = [{"role": "user", "content": "Hello"}]
            return await asking.messages.count_tokens(model="coder", messages=messages)

    assert await count(KEY) is not None
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await count(WRONG)
    assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    assert WRONG not in str(caught.value)
