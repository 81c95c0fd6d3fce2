"""Tests which requests a gateway takes: open ones, their bytes, and clients with slow bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from qwenfleet.cluster.config.admission import AdmissionConfig
from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.ingress.admission import PATIENCE_S, Admission
from qwenfleet.deployments.ingress.http_app import GatewayApp
from qwenfleet.deployments.wire.frames import EngineDescription
from tests.unit.deployments.ingress.engines import FakeEngines

SCOPE = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
BODY_BYTES = 1000


class Gateway:
    """A gateway with two places, whose app answers when the test says so."""

    def __init__(self, metrics: Any, clock: Any, new_client: Any, **admission: Any) -> None:
        bounds = AdmissionConfig(**{"max_open_body_bytes": BODY_BYTES, **admission})
        config = FleetConfig(
            models=(ModelConfig(id="coder", engine="scripted"),),
            gateway=GatewayConfig(
                max_body_bytes=BODY_BYTES,
                max_ongoing_requests=2,
                retry_after_s=7,
                admission=bounds,
            ),
        )
        self.answers = asyncio.Event()
        self.app = GatewayApp(config, metrics)
        self.app.admission = Admission(config.gateway, clock)
        served = self.app.models["coder"]
        served.engines = FakeEngines(description=EngineDescription(max_model_len=4096))
        served.app = self._answer
        self._new_client = new_client

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await self.answers.wait()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    def ask(self, *chunks: bytes, is_whole: bool = True) -> tuple[Any, asyncio.Task[None]]:
        """Begin a request; one that is not whole never sends the rest of its body."""
        client = self._new_client(*(chunks or (b"{}",)))
        if not is_whole:
            client._chunks[-1]["more_body"] = True
        task = asyncio.create_task(self.app(dict(SCOPE), client.receive, client.send))
        return client, task

    async def refusal(self, *chunks: bytes) -> tuple[int, str]:
        """Return the status and code of a request that is refused at once."""
        client, task = self.ask(*chunks)
        await asyncio.wait_for(task, 5)
        return client.status, json.loads(client.body)["error"]["code"]


@pytest.fixture
def gateway(metrics: Any, clock: Any, new_client: Any) -> Callable[..., Gateway]:
    return lambda **admission: Gateway(metrics, clock, new_client, **admission)


async def test_request_above_the_limit_gets_429_and_when_to_come_back(
    gateway: Any, eventually: Any, metrics: Any
) -> None:
    site = gateway()
    open_ones = [site.ask() for _ in range(2)]
    await eventually(lambda: site.app.ongoing == 2)
    client, refused = site.ask()
    await asyncio.wait_for(refused, 5)
    assert (client.status, client.headers[b"retry-after"]) == (429, b"7")
    assert json.loads(client.body)["error"]["type"] == "rate_limit_error"
    assert metrics.ended == [("none", "refused")]
    site.answers.set()
    await asyncio.gather(*(task for _, task in open_ones))
    assert [client.status for client, _ in open_ones] == [200, 200]
    assert (await site.refusal(b"["))[0] == 400, "there is room again"
    assert (site.app.admission.requests, site.app.admission.body_bytes) == (0, 0)


async def test_probes_and_other_routes_need_no_place(gateway: Any, eventually: Any) -> None:
    site = gateway()
    tasks = [site.ask()[1] for _ in range(2)]
    await eventually(lambda: site.app.ongoing == 2)
    client = site._new_client()
    await site.app(SCOPE | {"method": "GET", "path": "/health/live"}, client.receive, client.send)
    assert client.status == 200
    for task in tasks:
        task.cancel()


async def test_bodies_are_counted_together(gateway: Any, eventually: Any) -> None:
    site = gateway()
    _, first = site.ask(b"{" + b" " * 600 + b"}")
    await eventually(lambda: site.app.ongoing == 1)
    assert await site.refusal(b"{" + b" " * 500 + b"}") == (429, "too_many_requests")
    assert site.app.admission.body_bytes == 602
    first.cancel()


async def test_slow_body_gives_its_place_to_a_new_request(
    gateway: Any, eventually: Any, clock: Any
) -> None:
    site = gateway()
    slow = [site.ask(b"{", is_whole=False) for _ in range(2)]
    await eventually(lambda: site.app.admission.requests == 2)
    assert await site.refusal() == (429, "too_many_requests"), "everyone has a few seconds"
    clock.advance(PATIENCE_S)
    _, new = site.ask()
    await eventually(lambda: site.app.ongoing == 1)
    await asyncio.wait_for(slow[0][1], 5)
    assert json.loads(slow[0][0].body)["error"]["code"] == "timeout"
    assert not slow[1][1].done(), "one is enough"
    assert site.app.admission.requests == 2
    for task in (new, slow[1][1]):
        task.cancel()


async def test_slow_body_gives_its_bytes_to_a_new_request(
    gateway: Any, eventually: Any, clock: Any
) -> None:
    site = gateway()
    client, slow = site.ask(b"{" + b" " * 900, is_whole=False)
    await eventually(lambda: site.app.admission.body_bytes == 901)
    clock.advance(PATIENCE_S)
    _, new = site.ask(b"{" + b" " * 500 + b"}")
    await eventually(lambda: site.app.ongoing == 1)
    await asyncio.wait_for(slow, 5)
    assert json.loads(client.body)["error"]["code"] == "timeout"
    assert site.app.admission.body_bytes == 502
    new.cancel()


async def test_body_has_less_time_than_the_answer(gateway: Any) -> None:
    site = gateway(body_timeout_s=0.05)
    client, task = site.ask(b"{", is_whole=False)
    await asyncio.wait_for(task, 5)
    error = json.loads(client.body)["error"]
    assert "not complete within 0.05 s" in error["message"]


MIDDLE = b'{"prompt": "a", "suffix": "b"}'
OTHER = b'{"prompt": "a"}'


@pytest.fixture
def shared(gateway: Any) -> Gateway:
    """A gateway with two places, one of which is for fill-in-the-middle."""
    site: Gateway = gateway(fill_in_the_middle_share=0.5)
    return site


async def test_editors_have_a_share_of_the_places(
    shared: Gateway, eventually: Any, metrics: Any
) -> None:
    _, long = shared.ask(OTHER)
    await eventually(lambda: shared.app.ongoing == 1)
    assert await shared.refusal(OTHER) == (429, "too_many_requests")
    client, middle = shared.ask(MIDDLE)
    await eventually(lambda: shared.app.ongoing == 2)
    assert await shared.refusal(MIDDLE) == (429, "too_many_requests"), "all places are taken"
    shared.answers.set()
    await asyncio.gather(long, middle)
    assert client.status == 200
    assert shared.app.admission.requests == 0


async def test_editors_may_have_the_places_of_others_too(shared: Gateway, eventually: Any) -> None:
    asked = [shared.ask(MIDDLE) for _ in range(2)]
    await eventually(lambda: shared.app.ongoing == 2)
    shared.answers.set()
    await asyncio.gather(*(task for _, task in asked))
    assert [client.status for client, _ in asked] == [200, 200]


async def test_routes_that_cannot_be_quick_are_refused_before_their_body(
    shared: Gateway, eventually: Any, new_client: Any
) -> None:
    _, long = shared.ask(OTHER)
    await eventually(lambda: shared.app.ongoing == 1)
    client = new_client()
    scope = SCOPE | {"path": "/v1/chat/completions"}
    await asyncio.wait_for(shared.app(scope, client.receive, client.send), 5)
    assert client.status == 429
    long.cancel()


async def test_editors_have_a_share_of_the_bytes(shared: Gateway, eventually: Any) -> None:
    shared.app.admission._gateway = shared.app._gateway.model_copy(
        update={"max_body_bytes": 10, "max_ongoing_requests": 9}
    )
    _, long = shared.ask(b"{" + b" " * 400 + b"}")
    await eventually(lambda: shared.app.ongoing == 1)
    assert await shared.refusal(b"{" + b" " * 200 + b"}") == (429, "too_many_requests")
    _, middle = shared.ask(MIDDLE + b" " * 200)
    await eventually(lambda: shared.app.ongoing == 2)
    for task in (long, middle):
        task.cancel()


async def test_slow_body_of_an_editor_gives_its_place_to_no_other(
    shared: Gateway, eventually: Any, clock: Any, new_client: Any
) -> None:
    _, slow = shared.ask(b"{", is_whole=False)
    _, long = shared.ask(OTHER)
    await eventually(lambda: shared.app.ongoing == 1)
    clock.advance(PATIENCE_S)
    client = new_client()
    scope = SCOPE | {"path": "/v1/chat/completions"}
    await asyncio.wait_for(shared.app(scope, client.receive, client.send), 5)
    assert client.status == 429, "it would not have helped"
    assert not slow.done()
    _, middle = shared.ask(MIDDLE)
    await eventually(lambda: shared.app.ongoing == 2)
    await asyncio.wait_for(slow, 5)
    for task in (long, middle):
        task.cancel()
