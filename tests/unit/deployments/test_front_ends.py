"""Tests when a gateway builds its apps, with a hand-written front end in place of vLLM's."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments import front_ends as module
from qwenfleet.deployments.front_ends import FrontEnds
from qwenfleet.deployments.ingress.served import Served
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.registry.stages import Stage, StageClock
from qwenfleet.deployments.wire.frames import EngineDescription

ROOM = "qwenfleet.deployments.vllm_adapter"


def engine(state: str = "ready", limit: int = 4096, **fields: Any) -> EngineRecord:
    description = EngineDescription(max_model_len=limit)
    return EngineRecord("e1", "coder", "n1", 7, state, description=description, **fields)


class FakeDispatcher:
    """The links to one model's engines, as the test sets them."""

    def __init__(self, model: str, **_: Any) -> None:
        self.listed: list[Any] = []
        self.num_engines = 0
        self.num_moving = 0
        self.backlog_bytes = 0
        self.description: EngineDescription | None = None

    def update(self, records: Any) -> None:
        self.listed = list(records)

    def end_waiting(self) -> None: ...


class Builder:
    """vLLM's front end: records with which limits apps are built."""

    def __init__(self) -> None:
        self.limits: list[int] = []
        self.error: Exception | None = None

    async def build(self, model: Any, path: str, description: Any, *_: Any, **__: Any) -> Any:
        self.limits.append(description.max_model_len)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            app=object(), is_errored=False, rendering={"prompt": 3}, default_parameters={"top_k": 7}
        )


class Scene:
    def __init__(self, builder: Builder, metrics: Any) -> None:
        config = FleetConfig(models=(ModelConfig(id="coder", source="tiny-qwen3-moe"),))
        self.builder = builder
        self.served = Served(config.models[0], config.gateway)
        self.reports: list[tuple[str, Exception]] = []
        self.front_ends = FrontEnds(
            config, {"coder": self.served}, metrics, "gw-1", StageClock(), self.report
        )

    def connect(self, limit: int = 4096) -> None:
        self.dispatcher.num_engines = 1
        self.dispatcher.description = EngineDescription(limit)

    async def report(self, model: str, error: Exception) -> None:
        self.reports.append((model, error))

    @property
    def dispatcher(self) -> Any:
        return self.served.engines


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch, metrics: Any) -> Scene:
    builder = Builder()
    front_end, model_client = ModuleType("front_end"), ModuleType("model_client")
    codec, client_faults = ModuleType("codec"), ModuleType("client_faults")
    client_faults.install = lambda: None  # type: ignore[attr-defined]
    codec.vllm_version = lambda: "0.32.0"  # type: ignore[attr-defined]
    front_end.build = builder.build  # type: ignore[attr-defined]
    model_client.ModelClient = lambda *_, **__: None  # type: ignore[attr-defined]
    for name, fake in (
        ("front_end", front_end),
        ("model_client", model_client),
        ("codec", codec),
        ("client_faults", client_faults),
    ):
        monkeypatch.setitem(sys.modules, f"{ROOM}.{name}", fake)
        monkeypatch.setattr(f"{ROOM}.{name}", fake, raising=False)
    monkeypatch.setattr(module, "Dispatcher", FakeDispatcher)
    monkeypatch.setattr("qwenfleet.cluster.models.sources.locate", lambda *_: "/weights")
    scene = Scene(builder, metrics)
    await scene.front_ends.load()
    return scene


async def test_app_is_built_while_the_first_engine_loads(scene: Scene, eventually: Any) -> None:
    scene.front_ends.meet([EngineRecord("e1", "coder", "n1", 7, "starting")])
    await asyncio.sleep(0.01)
    assert scene.builder.limits == [], "its limits are not known yet"
    scene.front_ends.meet([engine("starting")])
    await eventually(lambda: scene.front_ends._built)
    assert scene.served.app is None
    scene.connect()
    scene.front_ends.meet([engine()])
    assert scene.served.is_ready
    assert scene.served.is_decided
    assert scene.served.default_parameters == {"top_k": 7}
    assert scene.builder.limits == [4096], "it is built once"


async def test_app_is_built_once_whatever_limit_the_ready_engine_has(
    scene: Scene, eventually: Any
) -> None:
    """Its front end follows the limit. Another app would share the dispatcher with the first, whose
    AsyncLLM closes it when it is collected."""
    scene.front_ends.meet([engine("starting", limit=8192)])
    await eventually(lambda: scene.front_ends._built)
    scene.connect(limit=2048)
    scene.front_ends.meet([engine(limit=2048)])
    assert scene.served.is_ready
    assert scene.builder.limits == [8192]


async def test_work_that_waits_is_reported_for_each_model(
    scene: Scene, eventually: Any, metrics: Any
) -> None:
    scene.dispatcher.backlog_bytes = 7
    scene.front_ends.report()
    assert metrics.pressures == {"coder": {"rendering": {}, "backlog_bytes": 7}}
    scene.front_ends.meet([engine("starting")])
    await eventually(lambda: scene.front_ends._built)
    scene.front_ends.report()
    assert metrics.pressures == {"coder": {"rendering": {"prompt": 3}, "backlog_bytes": 7}}


async def test_model_whose_app_cannot_be_built_is_broken_and_reported(
    scene: Scene, eventually: Any
) -> None:
    scene.builder.error = ValueError("the template has no end")
    scene.front_ends.meet([engine()])
    await eventually(lambda: scene.reports)
    assert scene.served.is_broken
    assert scene.served.is_decided
    assert scene.front_ends.are_all_broken
    assert scene.reports == [("coder", scene.builder.error)]
    scene.front_ends.meet([engine()])
    await asyncio.sleep(0.01)
    assert scene.builder.limits == [4096], "it is not tried again"


async def test_failed_front_end_is_seen(scene: Scene, eventually: Any) -> None:
    scene.connect()
    scene.front_ends.meet([engine()])
    await eventually(lambda: scene.served.is_ready)
    assert scene.front_ends.errored == ""
    built: Any = scene.front_ends._built["coder"]
    built.is_errored = True
    assert scene.front_ends.errored == "coder"


async def test_length_of_a_start_leaves_out_what_an_engine_waited_for(scene: Scene) -> None:
    stages = (
        Stage("waiting for its turn", 0.0, 500.0),
        Stage("loading the model", 500.0, 60.0),
        Stage("warming up", 560.0, 20.0),
    )
    scene.front_ends.meet([engine("starting", stages=stages[:2])])
    assert scene.served.longest_start_s == 0.0, "it has not ended"
    scene.front_ends.meet([engine(stages=stages)])
    assert scene.served.longest_start_s == 80.0
    scene.front_ends.meet([])
    assert scene.served.longest_start_s == 80.0
    assert not scene.served.has_ready_engine


async def test_engine_with_another_vllm_is_not_waited_for(scene: Scene) -> None:
    other = EngineDescription(max_model_len=4096, vllm_version="0.33.0")
    scene.front_ends.meet(
        [
            EngineRecord("e2", "coder", "n1", 8, "ready", description=other),
            EngineRecord("e3", "coder", "n1", 9, "starting", description=other),
        ]
    )
    await asyncio.sleep(0.01)
    assert not scene.served.has_ready_engine
    assert scene.front_ends.awaits_version
    assert scene.builder.limits == [], "its limits say nothing about engines that pair"
    scene.front_ends.meet([engine()])
    assert not scene.front_ends.awaits_version
