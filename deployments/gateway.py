"""Gateway: the Serve ingress, which joins its HTTP application to the fleet.

It answers HTTP before any engine is ready. Meanwhile it imports vLLM and builds each model's app.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import uuid
from typing import Any, Final

import ray
from ray import serve
from starlette.types import ASGIApp

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.slo import SloConfig
from qwenfleet.cluster.labels import StartPhase
from qwenfleet.cluster.models import sources
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.ingress.http_app import GatewayApp, Served
from qwenfleet.deployments.registry.client import RegistryClient
from qwenfleet.deployments.registry.records import EngineRecord, GatewayRecord, StartFailure
from qwenfleet.deployments.registry.stages import StageClock
from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics
from qwenfleet.deployments.telemetry.instruments import reporting
from qwenfleet.deployments.telemetry.logs import join_serve_log
from qwenfleet.deployments.telemetry.tracing import tracing_of

logger = logging.getLogger(__name__)

MEET_INTERVAL_S: Final = 0.5
"""Delay until a gateway connects to a newly listed engine, at most."""

SERVE_TIMEOUT_S: Final = 30.0
"""Wait for Serve's controller; it runs, since it started this replica."""


@serve.deployment
@serve.ingress(None)
class Gateway:
    """One gateway process: the app, and the tasks that keep it joined to the fleet."""

    def __init__(self, config: dict[str, Any], *_engines: Any) -> None:
        self._log_file = join_serve_log()
        self._config = FleetConfig.model_validate(config)
        self._id = f"gw-{uuid.uuid4().hex[:8]}"
        self._registry = RegistryClient(self._config.name)
        self._metrics = GatewayMetrics(
            self._config.name,
            self._config.objectives,
            os.environ.get("QWENFLEET_HEAD_STORE", ""),
        )
        self._metrics.begin()
        self._tracing = tracing_of(self._config, service="qwenfleet-gateway", instance=self._id)
        self._app = GatewayApp(self._config, self._metrics, self._tracing.spans)
        self._listed: tuple[EngineRecord, ...] = ()
        self._has_listing = asyncio.Event()
        """Set after each call to the registry, whether it answered or not."""
        self._dispatchers: dict[str, Dispatcher] = {}
        """By model."""
        self._stages = StageClock()
        self._tasks: list[asyncio.Task[None]] = []

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Take new objectives without a restart. Serve calls this with `user_config` before the
        first request and at each change."""
        objectives = config["objectives"]
        self._metrics.set_objectives(
            {m: SloConfig.model_validate(o) for m, o in objectives.items()}
        )

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Start the tasks and return the app. Serve awaits this once, after the constructor.

        Raises ConfigError if Serve listens beyond loopback and `auth` is not set.
        """
        if self._config.auth is None:
            self._config.check_guarded(await _serve_host())
        self._tasks = [asyncio.create_task(self._join()), asyncio.create_task(self._announce())]
        if self._app.guard.has_file:
            self._tasks.append(asyncio.create_task(self._app.guard.watch()))
        self._tasks[0].add_done_callback(_log_end)
        return self._app

    async def __del__(self) -> None:
        """Send the last report and leave the registry. Serve awaits this when it stops the
        replica."""
        for task in self._tasks:
            task.cancel()
        with reporting():
            self._app.report()
        await self._registry.withdraw(self._id)
        await asyncio.to_thread(self._tracing.close)

    def check_health(self) -> None:
        """Fail if a background task has ended, so that Serve replaces the gateway."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"gateway {self._id}: {task.exception()}")

    async def _join(self) -> None:
        """Import vLLM off the loop, connect to engines, and build each model's app when its first
        engine is connected."""
        self._stages.begin(StartPhase.IMPORTING_VLLM)
        await asyncio.to_thread(
            importlib.import_module, "qwenfleet.deployments.vllm_adapter.front_end"
        )
        from qwenfleet.deployments.vllm_adapter import codec

        for served in self._app.models.values():
            dispatcher = Dispatcher(
                served.config.id,
                gateway=self._id,
                wire=self._config.wire,
                retry_after_s=self._config.gateway.retry_after_s,
                metrics=self._metrics,
                vllm_version=codec.vllm_version(),
            )
            self._dispatchers[served.config.id] = served.engines = dispatcher
        self._stages.begin("waiting for an engine")
        while True:
            await self._has_listing.wait()
            self._has_listing.clear()
            for served in self._app.models.values():
                await self._meet(served, self._listed)

    async def _meet(self, served: Served, engines: tuple[EngineRecord, ...]) -> None:
        dispatcher = self._dispatchers[served.config.id]
        dispatcher.update(engines)
        description = dispatcher.description
        if served.app is not None or served.is_broken or description is None:
            return
        from qwenfleet.deployments.vllm_adapter import front_end
        from qwenfleet.deployments.vllm_adapter.model_client import ModelClient

        self._stages.begin(f"building the app of {served.config.id}")
        try:
            path = await asyncio.to_thread(sources.locate, served.config.resolved_source, _log)
            client = ModelClient(dispatcher)
            built = await front_end.build(
                served.config, path, description, client, self._config.traces_url
            )
        except Exception as error:  # one model's template or parser must not stop the others
            served.is_broken = True
            logger.exception("model app failed to build", extra={"model": served.config.id})
            await self._registry.report_failure(
                StartFailure(self._id, served.config.id, str(error), self._log_file, is_final=True)
            )
        else:
            served.app = built.app
            logger.info("model ready", extra={"model": served.config.id})
        self._stages.end()

    async def _announce(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        while True:
            record = GatewayRecord(
                id=self._id,
                node=node,
                pid=os.getpid(),
                is_ready=self._app.is_ready,
                models=tuple(m.config.id for m in self._app.models.values() if m.is_ready),
                requests=self._app.ongoing,
                stages=self._stages.stages,
            )
            with reporting():
                self._app.report()
            self._listed = await self._registry.announce_gateway(record)
            self._has_listing.set()
            await asyncio.sleep(MEET_INTERVAL_S)


async def _serve_host() -> str:
    """Return the address on which Serve listens for HTTP. On a cluster, Serve's own options decide
    that, not the fleet's file."""
    # Names from ray 2.60 `serve/_private/constants.py`; replicas ask their controller this way.
    async with asyncio.timeout(SERVE_TIMEOUT_S):
        controller = await asyncio.to_thread(
            ray.get_actor, "SERVE_CONTROLLER_ACTOR", namespace="serve"
        )
        options = await controller.get_http_config.remote()
    return options.host or "127.0.0.1"


def _log_end(task: asyncio.Task[None]) -> None:
    """Log why a task ended: tasks run forever, so the health check fails from now on."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("gateway task failed", exc_info=task.exception())


def _log(text: str) -> None:
    logger.info("locating model", extra={"step": text})
