"""Site: vLLM's real front end over scripted engines; the fixture `build` makes them."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from typing import Any

import httpx

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm import envs

    from qwenfleet.deployments.vllm_adapter import front_end
    from qwenfleet.deployments.vllm_adapter.front_end import FrontEnd
    from qwenfleet.deployments.vllm_adapter.model_client import ModelClient

from qwenfleet.cluster.config.fleet import FleetConfig, WireConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.models.sources import locate
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.ingress.http_app import GatewayApp


class Site:
    """A gateway's app over vLLM's front end, and a client of it."""

    def __init__(self, app: GatewayApp, made: FrontEnd, dispatcher: Dispatcher) -> None:
        self.app = app
        self.front_end = made
        self.dispatcher = dispatcher
        self.records: list[Any] = []
        """The registry's listing."""
        self.tokenizer: Any = made.llm.renderer.get_tokenizer()

    async def follow(self) -> None:
        """Follow the listing as a gateway does, which also connects lost engines again."""
        while True:
            self.dispatcher.update(self.records)
            await asyncio.sleep(0.05)

    async def ask(self, path: str = "/v1/completions", **body: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.post(path, json={"model": "coder", **body}, timeout=60)


class Sites:
    """Builds front ends for engines."""

    def __init__(self, wire: WireConfig, metrics: Any, eventually: Any) -> None:
        self._wire = wire
        self._metrics = metrics
        self._eventually = eventually
        self._sites: list[Site] = []
        self._followers: list[asyncio.Task[None]] = []

    async def build(self, *engines: Any, model: Any = None, **engine_args: Any) -> Site:
        """`model` holds fields of the model's configuration, other keywords are engine_args."""
        fields = {"source": "tiny-qwen3-moe", "tool_call_parser": "qwen3_coder", **(model or {})}
        config = FleetConfig(
            models=(ModelConfig(id="coder", engine_args=engine_args, **fields),), wire=self._wire
        )
        dispatcher = Dispatcher(
            "coder", gateway="gw-a", wire=self._wire, retry_after_s=5, metrics=self._metrics
        )
        dispatcher.update([engine.record for engine in engines])
        await self._eventually(lambda: dispatcher.num_engines == len(engines))
        description = dispatcher.description
        assert description is not None
        path = await asyncio.to_thread(locate, config.models[0].source)
        made = await front_end.build(config.models[0], path, description, ModelClient(dispatcher))
        app = GatewayApp(config, self._metrics)
        (served,) = app.models.values()
        served.engines, served.app = dispatcher, made.app
        site = Site(app, made, dispatcher)
        site.records += [engine.record for engine in engines]
        self._sites.append(site)
        self._followers.append(asyncio.create_task(site.follow()))
        # Building takes the loop for longer than a lease, and engines that were lost come back.
        await self._eventually(lambda: dispatcher.num_engines == len(engines))
        return site

    async def close(self) -> None:
        for follower in self._followers:
            follower.cancel()
        for site in self._sites:
            tasks = list(site.dispatcher._roster._tasks.values())
            site.front_end.llm.shutdown()
            await asyncio.gather(*tasks, return_exceptions=True)
        gc.unfreeze()
        envs.disable_envs_cache()
