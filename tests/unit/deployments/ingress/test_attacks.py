"""Forms of keys and tricks with paths, over the HTTP server that Serve's replicas use."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import uvicorn

from qwenfleet.cluster.config.auth import AuthConfig, hash_of
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.ingress.http_app import MODEL_ROUTES, GatewayApp
from tests.key_forms import KEY, KEY_FORMS, KeyForm
from tests.key_forms import request as with_form
from tests.path_tricks import METHODS, NOT_SERVED, TRICKS
from tests.path_tricks import request as to_target
from tests.unit.deployments.ingress.engines import FakeEngines

BODY = b'{"model": "coder"}'


class InnerApp:
    """Stands in for vLLM's app, and records what reaches it."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        self.headers += scope["headers"]
        await receive()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def inner() -> InnerApp:
    return InnerApp()


@pytest_asyncio.fixture
async def port(metrics: Any, inner: InnerApp) -> AsyncIterator[int]:
    """Run a gateway that requires a key."""
    keys = AuthConfig(keys=(hash_of(KEY),))
    config = FleetConfig(models=(ModelConfig(id="coder", engine="scripted"),), auth=keys)
    app = GatewayApp(config, metrics)
    app.models["coder"].app = inner
    app.models["coder"].engines = FakeEngines()
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical"))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield int(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    await task


async def answer_to(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1.1 (\d+)", answer)
    assert found, answer
    return int(found[1])


@pytest.mark.parametrize("form", KEY_FORMS, ids=lambda form: form.name)
async def test_only_a_whole_key_in_its_header_opens_the_fleet(
    port: int, inner: InnerApp, form: KeyForm
) -> None:
    answer = await answer_to(port, with_form(form, BODY))
    assert status_of(answer) in form.statuses
    assert len(inner.paths) == (200 in form.statuses)
    assert not {name for name, _ in inner.headers} & {b"authorization", b"x-api-key"}
    assert KEY.encode() not in answer


@pytest.mark.parametrize("target", TRICKS)
async def test_no_trick_with_a_path_reaches_a_route_that_is_not_served(
    port: int, inner: InnerApp, target: str
) -> None:
    for method in METHODS:
        answer = await answer_to(port, to_target(method, target, f"X-Api-Key: {KEY}"))
        assert status_of(answer) in NOT_SERVED, method
    assert set(inner.paths) <= MODEL_ROUTES


@pytest.mark.parametrize("target", TRICKS)
async def test_no_trick_with_a_path_avoids_the_key(port: int, inner: InnerApp, target: str) -> None:
    for method in METHODS:
        answer = await answer_to(port, to_target(method, target))
        assert status_of(answer) in {400, 401}, method
        assert b"coder" not in answer
    assert inner.paths == []
