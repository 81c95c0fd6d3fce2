"""Tests when a gateway starts, fails, and ends, without Serve, Ray or vLLM."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import GatewayStartError
from qwenfleet.deployments import gateway as module
from qwenfleet.deployments.ingress import drain as drain_module
from qwenfleet.deployments.ingress.http_app import GatewayApp
from qwenfleet.deployments.registry.records import (
    DrainOrder,
    EngineList,
    EngineRecord,
    GatewayRecord,
    StartFailure,
)
from qwenfleet.deployments.registry.stages import StageClock
from qwenfleet.deployments.telemetry.access_log import AccessLog
from qwenfleet.deployments.telemetry.tracing import NoTracing

MODELS = ("coder", "helper")
REPLICA = "qwenfleet.deployments.replica"
READY = EngineRecord("e1", "coder", "node-1", 7, "ready", host="10.0.0.1", port=99)


class Exit(BaseException):
    """Raised instead of ending the process."""


class Registry:
    """A registry of the test's engines."""

    def __init__(self) -> None:
        self.listing: EngineList | None = EngineList()
        self.records: list[GatewayRecord] = []
        self.failures: list[StartFailure] = []
        self.withdrawn: list[tuple[str, str]] = []
        self.hangs = False
        self.is_hanging = False
        """Whether a call waits for an answer that will not come."""

    async def announce_gateway(self, record: GatewayRecord) -> EngineList | None:
        self.records.append(record)
        if self.hangs:
            self.is_hanging = True
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return self.listing

    async def report_failure(self, failure: StartFailure) -> None:
        self.failures.append(failure)

    async def withdraw(self, name: str, reason: str) -> None:
        self.withdrawn.append((name, reason))


class Engines:
    """Engines of one model."""

    description = None
    num_engines = 1
    num_moving = 0

    def end_waiting(self) -> None: ...


class FrontEnds:
    """Stands in for the front ends: the test builds and connects."""

    def __init__(self, app: GatewayApp) -> None:
        self.app = app
        self.errored = ""
        self.is_building = False
        self.awaits_version = False
        self.are_all_broken = False
        self.import_error: Exception | None = None
        self.is_loaded = False

    async def load(self) -> None:
        if self.import_error is not None:
            raise self.import_error
        self.is_loaded = True

    async def keep_leases(self) -> None:
        await asyncio.Event().wait()

    def report(self) -> None: ...

    def meet(self, engines: Any) -> None:
        assert self.is_loaded
        for name, served in self.app.models.items():
            served.has_ready_engine = any(e.model == name and e.state == "ready" for e in engines)
            served.look()

    def build(self, model: str) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None: ...

        self.app.models[model].app = app

    def connect(self, model: str) -> None:
        self.app.models[model].engines = Engines()

    def close(self) -> None: ...


class Scene:
    """A gateway in the hands of a test."""

    def __init__(self, metrics: Any) -> None:
        config = FleetConfig(
            models=tuple(ModelConfig(id=model, engine="scripted") for model in MODELS),
            gateway=GatewayConfig(drain_s=60.0),
        )
        deployment: Any = module.Gateway
        plain = deployment.func_or_class
        # Gateway.__del__ is a coroutine, which only Serve awaits.
        self.gateway: Any = object.__new__(type("Gateway", (plain,), {"__del__": lambda _: None}))
        self.registry = Registry()
        self.app = GatewayApp(config, metrics)
        self.front_ends = FrontEnds(self.app)
        fields: dict[str, Any] = {
            "_log_file": "gw.log",
            "_config": config,
            "_id": "gw-1",
            "_registry": self.registry,
            "_metrics": metrics,
            "_tracing": NoTracing(),
            "_access_log": AccessLog(),
            "_app": self.app,
            "_stages": StageClock(),
            "_front_ends": self.front_ends,
            "_engines": None,
            "_has_listing": asyncio.Event(),
            "_has_news": asyncio.Event(),
            "_has_started": False,
            "_is_replaced": False,
            "_tasks": [],
        }
        self.gateway.__dict__.update(fields)

    def start(self) -> asyncio.Task[Any]:
        return asyncio.create_task(self.gateway.__serve_build_asgi_app__())


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What Serve does to the replica: append True to stop it."""
    signs: list[bool] = []

    class Context:
        def get_node_id(self) -> str:
            return "node-1"

    async def loopback() -> str:
        return "127.0.0.1"

    def leave(status: int) -> None:
        raise Exit(status)

    monkeypatch.setattr("ray.get_runtime_context", Context)
    monkeypatch.setattr(module, "_serve_host", loopback)
    monkeypatch.setattr(f"{REPLICA}.is_stopping", lambda: bool(signs))
    monkeypatch.setattr(f"{REPLICA}.on_sigterm", lambda loop, leave: None)
    for interval in ("MEET_INTERVAL_S", "LOOK_INTERVAL_S", "REPORT_INTERVAL_S"):
        monkeypatch.setattr(module, interval, 0.005)
    monkeypatch.setattr(module, "WATCH_INTERVAL_S", 0.005)
    monkeypatch.setattr(drain_module, "LAST_CALL_S", 0.0)
    monkeypatch.setattr(os, "_exit", leave)
    return signs


@pytest.fixture
async def scene(metrics: Any, stopping: list[bool]) -> Any:
    scene = Scene(metrics)
    yield scene
    scene.gateway._end_tasks()
    await asyncio.gather(*scene.gateway._tasks, return_exceptions=True)


async def test_gateway_of_a_fleet_without_a_ready_engine_runs_at_once(scene: Any) -> None:
    assert await scene.start() is scene.app
    assert scene.front_ends.is_loaded, "but not before vLLM is imported"


async def test_gateway_runs_when_models_with_a_ready_engine_can_be_served(
    scene: Any, eventually: Any
) -> None:
    scene.registry.listing = EngineList((READY,))
    start = scene.start()
    await eventually(lambda: len(scene.registry.records) > 3)
    assert not start.done()
    scene.front_ends.build("coder")
    await eventually(lambda: len(scene.registry.records) > 6)
    assert not start.done(), "no engine is connected"
    assert {str(record.state) for record in scene.registry.records} == {"starting"}
    scene.front_ends.connect("coder")
    await start
    assert scene.app.is_ready
    await eventually(lambda: scene.registry.records[-1].state == "ready")


async def test_upgraded_gateway_waits_for_the_first_engine_with_its_vllm(
    scene: Any, eventually: Any
) -> None:
    """Serve would stop the old gateways, and with them all that pairs with the old engines."""
    scene.front_ends.awaits_version = True
    start = scene.start()
    await eventually(lambda: len(scene.registry.records) > 5)
    assert not start.done()
    scene.front_ends.awaits_version = False
    await start


async def test_start_whose_announcements_fail_fails_too(scene: Any, eventually: Any) -> None:
    scene.front_ends.awaits_version = True
    start = scene.start()
    await eventually(lambda: scene.registry.records)

    async def fail() -> None:
        raise OSError("no file")

    scene.gateway._begin(fail())
    with pytest.raises(GatewayStartError, match="a task failed: no file"):
        await start


async def test_start_waits_for_the_registrys_first_answer(scene: Any, eventually: Any) -> None:
    scene.registry.listing = None
    start = scene.start()
    await eventually(lambda: len(scene.registry.records) > 3)
    assert not start.done()
    scene.registry.listing = EngineList()
    await start


async def test_registry_without_an_answer_does_not_keep_a_gateway_from_running(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REGISTRY_PATIENCE_S", 0.02)
    scene.registry.listing = None
    assert await scene.start() is scene.app


async def test_gateway_looks_at_its_engines_while_the_registry_hangs(
    scene: Any, metrics: Any, eventually: Any
) -> None:
    await scene.start()
    scene.registry.hangs = True
    await eventually(lambda: scene.registry.is_hanging)
    scene.front_ends.connect("coder")
    await eventually(lambda: metrics.levels["coder"]["engines"] == 1)
    scene.app.models["coder"].ongoing = 1
    scene.front_ends.errored = "coder"
    await eventually(lambda: scene.app.drain.is_on)
    assert scene.app.drain.reason == "the front end of model 'coder' failed"


async def test_registry_that_hangs_in_a_start_hides_no_engine_that_is_connected(
    scene: Any, eventually: Any
) -> None:
    scene.registry.listing = EngineList((READY,))
    start = scene.start()
    await eventually(lambda: len(scene.registry.records) > 3)
    scene.registry.hangs = True
    await eventually(lambda: scene.registry.is_hanging)
    scene.front_ends.build("coder")
    scene.front_ends.connect("coder")
    await asyncio.wait_for(start, 10)
    assert scene.app.is_ready


async def test_failed_import_is_a_failed_start_with_a_reason(scene: Any) -> None:
    scene.front_ends.import_error = RuntimeError("operator torchvision::nms does not exist")
    with pytest.raises(RuntimeError, match="torchvision::nms"):
        await scene.start()
    (failure,) = scene.registry.failures
    assert (failure.engine, failure.model, failure.log_file) == ("gw-1", "", "gw.log")
    assert failure.reason == "RuntimeError: operator torchvision::nms does not exist"
    assert not failure.is_final, "Serve tries again"


async def test_one_broken_model_does_not_keep_the_others_from_running(scene: Any) -> None:
    scene.registry.listing = EngineList((READY,))
    scene.app.models["coder"].is_broken = True
    assert await scene.start() is scene.app


async def test_gateway_all_of_whose_models_are_broken_does_not_start(scene: Any) -> None:
    scene.front_ends.are_all_broken = True
    with pytest.raises(GatewayStartError, match="no model's app can be built"):
        await scene.start()
    assert len(scene.registry.failures) == 1


async def test_engine_that_cannot_be_reached_is_a_failed_start(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINK_PATIENCE_S", 0.03)
    scene.registry.listing = EngineList((READY,))
    scene.front_ends.build("coder")
    with pytest.raises(GatewayStartError, match=r"e1 of model 'coder' .* 10\.0\.0\.1:99"):
        await scene.start()


async def test_engine_that_cannot_be_reached_does_not_stop_a_gateway_of_another_model(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINK_PATIENCE_S", 0.03)
    scene.registry.listing = EngineList((READY,))
    for model in MODELS:
        scene.front_ends.build(model)
    scene.front_ends.connect("helper")
    assert await scene.start() is scene.app


async def test_gateway_that_serve_stops_says_that_it_drains(
    scene: Any, stopping: list[bool], eventually: Any
) -> None:
    await scene.start()
    stopping.append(True)
    await eventually(lambda: scene.registry.records[-1].state == "draining")
    assert scene.registry.records[-1].reason == "Ray Serve stops it"
    assert 50 < scene.app.drain.left_s <= 60
    scene.gateway.check_health()


async def test_sigterm_drains_has_the_gateway_replaced_and_ends_the_process(
    scene: Any, eventually: Any
) -> None:
    await scene.start()
    scene.app.models["coder"].ongoing = 1
    scene.gateway._leave("it got SIGTERM")
    with pytest.raises(RuntimeError, match="drains: it got SIGTERM"):
        scene.gateway.check_health()
    await eventually(lambda: scene.registry.records[-1].state == "draining")
    watch = scene.gateway._tasks[-1]
    assert not watch.done(), "a request is left"
    scene.app.models["coder"].ongoing = 0
    with pytest.raises(Exit):
        await watch
    assert scene.registry.withdrawn == [("gw-1", "it got SIGTERM")]


async def test_order_of_the_registry_drains_but_ends_no_process(
    scene: Any, eventually: Any
) -> None:
    await scene.start()
    scene.registry.listing = EngineList((), DrainOrder("the fleet stops", 5.0))
    await eventually(lambda: scene.app.drain.is_on)
    await asyncio.wait_for(scene.gateway._tasks[-1], 10)
    scene.gateway.check_health()


@pytest.mark.parametrize("is_all", [True, False])
async def test_front_end_that_failed_has_the_gateway_replaced(
    scene: Any, eventually: Any, is_all: bool
) -> None:
    await scene.start()
    scene.app.models["helper"].ongoing = 1
    if is_all:
        scene.front_ends.are_all_broken = True
    else:
        scene.front_ends.errored = "coder"
    await eventually(lambda: scene.app.drain.is_on)
    assert scene.app.models["coder"].is_broken is not is_all
    with pytest.raises(RuntimeError, match="drains"):
        scene.gateway.check_health()


async def test_task_that_fails_has_the_gateway_replaced(scene: Any, eventually: Any) -> None:
    await scene.start()
    scene.app.models["coder"].ongoing = 1

    async def fail() -> None:
        raise OSError("no file")

    scene.gateway._begin(fail())
    await eventually(lambda: scene.app.drain.reason == "a task failed: no file")
