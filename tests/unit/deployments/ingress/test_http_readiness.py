"""Tests when a gateway answers, holds and refuses requests, with a hand-written app and engines."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.ingress import served as module
from qwenfleet.deployments.ingress.drain import LAST_CALL_S, Drain
from qwenfleet.deployments.ingress.http_app import GatewayApp
from qwenfleet.deployments.ingress.served import START_FACTOR, START_FLOOR_S, Served
from tests.unit.deployments.ingress.engines import FakeEngines

CHAT = "/v1/chat/completions"
READY = "/health/ready"


class FakeApp:
    """An app whose answer ends when the test says so."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream"), (b"connection", b"keep-alive")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class Scene:
    """A gateway of one or two models, none of which is ready."""

    def __init__(self, metrics: Any, clock: Any, *models: str, **settings: Any) -> None:
        self.config = FleetConfig(
            models=tuple(ModelConfig(id=model, engine="scripted") for model in models),
            gateway=GatewayConfig(retry_after_s=7, **settings),
        )
        self.app = GatewayApp(self.config, metrics)
        self.app.drain = Drain(clock)
        self.engines = FakeEngines(num_engines=0)
        self.inner = FakeApp()
        self.served = self.app.models[models[0]] = self.new_served(models[0], clock)
        self.new_client: Any = None
        self.client: Any = None
        """Who asked last."""

    def new_served(self, model: str, clock: Any) -> Served:
        config = next(m for m in self.config.models if m.id == model)
        return Served(config, self.config.gateway, clock)

    def open(self) -> None:
        """Build the app and connect an engine."""
        self.served.engines, self.served.app = self.engines, self.inner
        self.engines.num_engines = 1
        self.served.look()

    def lose(self) -> None:
        self.engines.num_engines = 0
        self.served.look()

    async def ask(self, path: str = CHAT, body: bytes = b"{}") -> Any:
        self.client = client = self.new_client(body)
        scope = {"type": "http", "method": "GET" if path == READY else "POST", "path": path}
        await asyncio.wait_for(self.app({**scope, "headers": []}, client.receive, client.send), 10)
        return client


def code_of(client: Any) -> Any:
    return json.loads(client.body)["error"]["code"]


@pytest.fixture
def new_scene(metrics: Any, clock: Any, new_client: Any) -> Any:
    def new(*models: str, **settings: Any) -> Scene:
        scene = Scene(metrics, clock, *(models or ("coder",)), **settings)
        scene.new_client = new_client
        return scene

    return new


async def test_gateway_of_a_fleet_that_starts_refuses_at_once(new_scene: Any) -> None:
    scene = new_scene()
    for path in (READY, CHAT):
        refused = await scene.ask(path)
        assert (refused.status, refused.headers[b"retry-after"]) == (503, b"7")
        assert code_of(refused) == "model_loading"
    scene.open()
    assert (await scene.ask(READY)).status == 200
    assert (await scene.ask()).status == 200


async def test_app_that_is_built_before_its_engine_is_ready_refuses_too(new_scene: Any) -> None:
    scene = new_scene()
    scene.served.engines, scene.served.app = scene.engines, scene.inner
    scene.served.look()
    assert code_of(await scene.ask()) == "model_loading"
    assert (await scene.ask("/tokenize")).status == 200, "it needs no engine"


async def test_request_is_held_while_a_ready_engine_is_being_connected(new_scene: Any) -> None:
    scene = new_scene()
    scene.served.has_ready_engine = True
    held = asyncio.create_task(scene.ask())
    await asyncio.sleep(0.01)
    assert not held.done()
    assert scene.app.ongoing == 1
    scene.open()
    assert (await held).status == 200


async def test_hold_ends_with_the_patience_for_an_engine(new_scene: Any) -> None:
    scene = new_scene(no_engine_s=0.02)
    scene.served.has_ready_engine = True
    assert code_of(await scene.ask()) == "no_engine"


async def test_hold_ends_when_the_app_cannot_be_built(new_scene: Any) -> None:
    scene = new_scene()
    scene.served.has_ready_engine = True
    held = asyncio.create_task(scene.ask())
    await asyncio.sleep(0.01)
    scene.served.is_broken = True
    scene.served.look()
    assert code_of(await held) == "model_broken"
    assert code_of(await scene.ask()) == "model_broken"


async def held_request(new_scene: Any, eventually: Any) -> tuple[Any, asyncio.Task[Any]]:
    """A request that waits for an engine that is being connected."""
    scene = new_scene()
    scene.served.has_ready_engine = True
    held = asyncio.create_task(scene.ask())
    await eventually(lambda: scene.app.ongoing)
    return scene, held


async def test_client_that_disconnects_ends_its_hold(
    new_scene: Any, eventually: Any, metrics: Any
) -> None:
    scene, held = await held_request(new_scene, eventually)
    scene.client.hung_up.set()
    assert not (await asyncio.wait_for(held, 1)).messages
    assert scene.app.ongoing == 0
    assert metrics.ended == [("coder", "disconnected")]
    assert not metrics.rejections


async def test_canceled_request_ends_its_hold(
    new_scene: Any, eventually: Any, metrics: Any
) -> None:
    scene, held = await held_request(new_scene, eventually)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    assert scene.app.ongoing == 0
    assert metrics.ended == [("coder", "disconnected")]


async def test_request_that_is_held_at_the_end_of_a_drain_is_refused(
    new_scene: Any, eventually: Any, metrics: Any
) -> None:
    scene, held = await held_request(new_scene, eventually)
    scene.app.drain.order("SIGTERM", 0.0)
    scene.app.end_all()
    refused = await asyncio.wait_for(held, 1)
    assert (refused.status, code_of(refused)) == (503, "gateway_draining")
    assert refused.headers[b"retry-after"] == b"7"
    assert scene.app.ongoing == 0
    assert metrics.ended == [("coder", "unavailable")]


async def test_one_ready_model_makes_the_gateway_ready(new_scene: Any) -> None:
    scene = new_scene("coder", "helper")
    scene.open()
    assert (await scene.ask(READY)).status == 200
    loading = await scene.ask(body=b'{"model": "helper"}')
    assert (loading.status, code_of(loading)) == (503, "model_loading")
    assert "'helper' is still loading" in json.loads(loading.body)["error"]["message"]


async def test_model_without_a_working_engine_is_refused_after_the_time_of_a_start(
    new_scene: Any, clock: Any
) -> None:
    scene = new_scene()
    scene.served.longest_start_s = 100.0
    scene.open()
    scene.lose()
    assert code_of(await scene.ask(READY)) == "no_engine"
    clock.advance(START_FACTOR * 100.0 - 1)
    assert (await scene.ask()).status == 200, "it waits in the dispatcher"
    scene.served.look()
    assert not scene.engines.num_ended
    clock.advance(2)
    refused = await scene.ask()
    assert (refused.status, code_of(refused)) == (503, "no_engine")
    assert refused.headers[b"retry-after"] == b"7"
    assert scene.engines.num_ended, "requests that wait are ended"
    scene.open()
    assert (await scene.ask()).status == 200


async def test_new_ready_engine_gets_time_to_be_connected(new_scene: Any, clock: Any) -> None:
    scene = new_scene(no_engine_s=60.0)
    scene.open()
    scene.lose()
    clock.advance(61)
    assert code_of(await scene.ask()) == "no_engine"
    scene.served.note_listing(True, 5.0)
    assert (await scene.ask()).status == 200, "it waits in the dispatcher"
    clock.advance(61)
    scene.served.note_listing(True, 5.0)
    assert code_of(await scene.ask()) == "no_engine", "it cannot be reached from here"


async def test_time_of_a_start_has_a_floor_and_a_setting(new_scene: Any) -> None:
    scene = new_scene()
    assert scene.served.patience_s == module.UNKNOWN_START_S
    scene.served.longest_start_s = 2.0
    assert scene.served.patience_s == START_FLOOR_S
    assert new_scene(no_engine_s=5.0).served.patience_s == 5.0


async def test_draining_gateway_closes_connections_and_then_refuses(
    new_scene: Any, clock: Any
) -> None:
    scene = new_scene()
    scene.open()
    assert (await scene.ask()).headers[b"connection"] == b"keep-alive"
    assert scene.app.drain.order("Serve stops it", 600.0)
    assert code_of(await scene.ask(READY)) == "gateway_draining"
    late = await scene.ask()
    assert (late.status, late.headers[b"connection"]) == (200, b"close")
    clock.advance(LAST_CALL_S)
    refused = await scene.ask()
    assert (refused.status, code_of(refused)) == (503, "gateway_draining")
    assert (refused.headers[b"connection"], refused.headers[b"retry-after"]) == (b"close", b"7")


async def test_stream_that_is_left_at_the_end_of_a_drain_gets_an_error_event(
    new_scene: Any, eventually: Any, metrics: Any
) -> None:
    scene = new_scene()
    scene.open()
    scene.inner.may_end.clear()
    stream = asyncio.create_task(scene.ask())
    await eventually(lambda: scene.app.ongoing)
    scene.app.drain.order("SIGTERM", 0.0)
    scene.app.end_all()
    body = (await stream).body
    assert body.startswith(b"data: 1\n\nevent: error\n")
    assert b"gateway_draining" in body
    assert b"[DONE]" not in body
    assert scene.app.ongoing == 0


async def test_stream_that_ends_within_a_drain_is_whole(new_scene: Any, eventually: Any) -> None:
    scene = new_scene()
    scene.open()
    scene.inner.may_end.clear()
    stream = asyncio.create_task(scene.ask())
    await eventually(lambda: scene.app.ongoing)
    scene.app.drain.order("SIGTERM", 60.0)
    scene.inner.may_end.set()
    assert (await stream).body.endswith(b"data: [DONE]\n\n")


def test_earliest_order_to_drain_counts(clock: Any) -> None:
    drain = Drain(clock)
    assert not drain.is_on
    assert drain.order("Serve stops it", 600.0)
    clock.advance(100.0)
    assert not drain.order("a later one", 501.0)
    assert (drain.reason, drain.left_s) == ("Serve stops it", 500.0)
    assert drain.order("Ctrl-C", 5.0)
    assert (drain.reason, drain.left_s) == ("Ctrl-C", 5.0)
    clock.advance(6.0)
    assert drain.left_s == 0.0
    assert drain.refuses
