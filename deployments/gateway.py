"""Gateway: the Serve ingress, which joins its HTTP application to the fleet.

Serve takes it for running once it has imported vLLM and, for each model with a ready engine, has
built the app and connected to one. It ends by a drain: `ingress/drain.py` has the rules.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import ray
from ray import serve
from starlette.types import ASGIApp

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.slo import SloConfig
from qwenfleet.cluster.errors import FleetError, GatewayStartError
from qwenfleet.cluster.labels import EngineState, GatewayState
from qwenfleet.deployments import replica
from qwenfleet.deployments.front_ends import FrontEnds
from qwenfleet.deployments.ingress.http_app import GatewayApp
from qwenfleet.deployments.registry.client import RegistryClient
from qwenfleet.deployments.registry.records import EngineRecord, GatewayRecord, StartFailure
from qwenfleet.deployments.registry.stages import StageClock
from qwenfleet.deployments.telemetry import loop_lag
from qwenfleet.deployments.telemetry.access_log import AccessLog
from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics
from qwenfleet.deployments.telemetry.instruments import reporting
from qwenfleet.deployments.telemetry.logs import access_log_handlers, close_session, join_serve_log
from qwenfleet.deployments.telemetry.pod_log import PodLog
from qwenfleet.deployments.telemetry.tracing import tracing_of

logger = logging.getLogger(__name__)

MEET_INTERVAL_S: Final = 0.5
"""Delay until a gateway connects to a newly listed engine, at most."""
LOOK_INTERVAL_S: Final = 1.0
"""Time between two looks at engines and front ends while the registry does not answer."""
REPORT_INTERVAL_S: Final = 0.5
"""Time between two reports of levels to Prometheus."""
SERVE_TIMEOUT_S: Final = 30.0
"""Wait for Serve's controller; it runs, since it started this replica."""
REGISTRY_PATIENCE_S: Final = 30.0
"""Wait for the registry's first answer; a registry restarts within seconds."""
LINK_PATIENCE_S: Final = 60.0
"""Wait for the first link to a ready engine. A lost one is unlisted after five seconds, so one that
is listed for so long cannot be reached from here."""
WATCH_INTERVAL_S: Final = 0.25
"""How late a gateway notices that Serve stops it, and that a drain is over."""
LAST_ERRORS_S: Final = 3.0
"""Time for the last errors to reach their clients."""
BROKEN_EXIT_CODE: Final = 70
"""EX_SOFTWARE of sysexits.h."""


@serve.deployment
@serve.ingress(None)
class Gateway:
    """One gateway process: the app, and the tasks that keep it joined to the fleet."""

    def __init__(self, config: dict[str, Any], *_engines: Any) -> None:
        self._config = FleetConfig.model_validate(config)
        self._id = f"gw-{uuid.uuid4().hex[:8]}"
        fields = {"fleet": self._config.name, "gateway": self._id}
        pod_log = PodLog(self._config.logging.format, fields)
        self._log_file = join_serve_log(pod_log)
        self._access_log = AccessLog(
            access_log_handlers(pod_log) if self._config.logging.access else ()
        )
        self._registry = RegistryClient(self._config.name)
        self._metrics = GatewayMetrics(
            self._config.name,
            self._config.objectives,
            os.environ.get("QWENFLEET_HEAD_STORE", ""),
        )
        self._metrics.begin()
        self._tracing = tracing_of(self._config, service="qwenfleet-gateway", instance=self._id)
        self._app = GatewayApp(self._config, self._metrics, self._tracing.spans, self._access_log)
        self._stages = StageClock()
        self._front_ends = FrontEnds(
            self._config,
            self._app.models,
            self._metrics,
            self._id,
            self._stages,
            partial(self._report, is_final=True),
        )
        self._engines: tuple[EngineRecord, ...] | None = None
        """As the registry listed them last; None until its first answer."""
        self._has_listing = asyncio.Event()
        """Set after each answer of the registry."""
        self._has_news = asyncio.Event()
        """Set to send the next announcement at once."""
        self._has_started = False
        self._is_replaced = False
        """Whether Serve has to start another gateway in place of this one."""
        self._tasks: list[asyncio.Task[None]] = []

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Take new objectives without a restart. Serve calls this with `user_config` before the
        first request and at each change."""
        objectives = config["objectives"]
        self._metrics.set_objectives(
            {m: SloConfig.model_validate(o) for m, o in objectives.items()}
        )

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the app once it can answer. Serve awaits this once, after the constructor, and
        counts an exception as a failed start.

        Raises ConfigError if Serve listens beyond loopback and `auth` is not set, and
        GatewayStartError.
        """
        try:
            if self._config.auth is None:
                self._config.check_guarded(await _serve_host())
            for work in (
                self._announce(),
                self._measure(),
                self._front_ends.keep_leases(),
                loop_lag.watch(self._metrics.lagged),
            ):
                self._begin(work)
            await self._front_ends.load()
            await self._meet_first()
        except Exception as error:
            logger.exception("gateway did not start", extra={"gateway": self._id})
            self._end_tasks()
            await self._report("", error)
            raise
        self._has_started = True
        self._has_news.set()
        for work in (self._meet(), self._watch()):
            self._begin(work)
        if self._app.guard.has_file:
            self._begin(self._app.guard.watch())
        replica.on_sigterm(asyncio.get_running_loop(), partial(self._leave, "it got SIGTERM"))
        return self._app

    async def __del__(self) -> None:
        """Send the last report and leave the registry. Serve awaits this after the last request."""
        self._end_tasks()
        await self._part()

    def check_health(self) -> None:
        """Fail if this gateway ends by itself, so that Serve starts another meanwhile."""
        if self._is_replaced:
            raise RuntimeError(f"gateway {self._id} drains: {self._app.drain.reason}")

    # The start.

    async def _meet_first(self) -> None:
        """Wait until every model with a ready engine can be served."""
        await self._first_listing()
        give_up_at = time.monotonic() + LINK_PATIENCE_S
        while True:
            self._front_ends.meet(self._engines or ())
            models = self._app.models.values()
            waiting = [m for m in models if m.has_ready_engine and not m.is_decided]
            if self._front_ends.are_all_broken:
                raise GatewayStartError("no model's app can be built", "Its log has the reasons.")
            if not waiting and not self._front_ends.awaits_version:
                return
            if self._front_ends.is_building or not waiting:
                give_up_at = time.monotonic() + LINK_PATIENCE_S
            elif time.monotonic() > give_up_at:
                if any(served.is_ready for served in models):
                    return
                raise self._unreachable(waiting[0].config.id)
            await self._next_look()
            if self._app.drain.is_on:  # one of its tasks has failed
                raise GatewayStartError(self._app.drain.reason, "Its log has the stack.")

    async def _first_listing(self) -> None:
        try:
            async with asyncio.timeout(REGISTRY_PATIENCE_S):
                while self._engines is None:
                    await self._next_listing()
        except TimeoutError:
            logger.warning("started without an answer of the registry")

    async def _next_listing(self) -> None:
        self._has_listing.clear()
        await self._has_listing.wait()

    async def _next_look(self) -> None:
        """Wait for the registry's next answer, but not for a registry that hangs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_INTERVAL_S):
                await self._next_listing()

    def _unreachable(self, model: str) -> GatewayStartError:
        engine = next(
            e for e in self._engines or () if e.model == model and e.state == EngineState.READY
        )
        return GatewayStartError(
            f"engine {engine.id} of model '{model}' cannot be reached at "
            f"{engine.host}:{engine.port}",
            "Check the network between the nodes.",
        )

    # The tasks.

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Replace a gateway one of whose tasks has failed."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("gateway task failed", exc_info=error)
            self._leave(f"a task failed: {error}")
            self._has_listing.set()  # a start must not wait for another one

    def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._front_ends.close()

    async def _meet(self) -> None:
        """Follow the registry's listing, and leave when a front end is beyond repair."""
        while True:
            await self._next_look()
            self._front_ends.meet(self._engines or ())
            errored = self._front_ends.errored
            if errored:
                self._app.models[errored].is_broken = True
                self._leave(f"the front end of model '{errored}' failed")
            elif self._front_ends.are_all_broken:
                self._leave("no model's app can be built")

    async def _watch(self) -> None:
        """Notice that Serve stops this replica, and carry a drain through."""
        drain = self._app.drain
        while not drain.is_on:
            if replica.is_stopping():
                drain_s = self._config.gateway.longest_drain_s
                self._drain("Ray Serve stops it", drain_s)
            await asyncio.sleep(WATCH_INTERVAL_S)
        await _until(lambda: drain.left_s == 0 or (drain.refuses and not self._app.ongoing))
        self._app.end_all()
        give_up_at = time.monotonic() + LAST_ERRORS_S
        await _until(lambda: not self._app.ongoing or time.monotonic() > give_up_at)
        if self._is_replaced and not replica.is_stopping():
            await self._part()
            os._exit(BROKEN_EXIT_CODE)

    async def _measure(self) -> None:
        while True:
            with reporting():
                self._front_ends.report()
                self._app.report()
            close_session(self._log_file)
            await asyncio.sleep(REPORT_INTERVAL_S)

    async def _announce(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        while True:
            listing = await self._registry.announce_gateway(self._record(node))
            if listing is not None:
                self._engines = listing.engines
                if listing.drain is not None:
                    self._drain(listing.drain.reason, listing.drain.deadline_s)
            self._has_listing.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(MEET_INTERVAL_S):
                    await self._has_news.wait()
            self._has_news.clear()

    def _record(self, node: str) -> GatewayRecord:
        state = GatewayState.READY if self._app.is_ready else GatewayState.NO_ENGINE
        if not self._has_started:
            state = GatewayState.STARTING
        return GatewayRecord(
            id=self._id,
            node=node,
            pid=os.getpid(),
            is_ready=self._app.is_ready,
            models=tuple(m.config.id for m in self._app.models.values() if m.is_ready),
            requests=self._app.ongoing,
            stages=self._stages.stages,
            state=GatewayState.DRAINING if self._app.drain.is_on else state,
            reason=self._app.drain.reason,
        )

    # The end.

    def _leave(self, reason: str) -> None:
        """Drain, and have Serve start another gateway."""
        self._is_replaced = True
        self._drain(reason, self._config.gateway.longest_drain_s)

    def _drain(self, reason: str, deadline_s: float) -> None:
        if self._app.drain.order(reason, deadline_s):
            extra = {"gateway": self._id, "reason": reason, "requests": self._app.ongoing}
            logger.info("gateway drains", extra=extra)
            self._has_news.set()

    async def _part(self) -> None:
        with reporting():
            self._app.report()
        await self._registry.withdraw(self._id, self._app.drain.reason)
        await asyncio.to_thread(self._tracing.close)
        await asyncio.to_thread(self._access_log.close)

    async def _report(self, model: str, error: Exception, *, is_final: bool = False) -> None:
        """Tell the registry why this gateway, or the app of a model in it, did not start."""
        reason = str(error) if isinstance(error, FleetError) else f"{type(error).__name__}: {error}"
        await self._registry.report_failure(
            StartFailure(self._id, model, reason, self._log_file, is_final=is_final)
        )


async def _until(is_true: Callable[[], bool]) -> None:
    while not is_true():  # noqa: ASYNC110 # a drain lasts minutes, and its clock ends it
        await asyncio.sleep(WATCH_INTERVAL_S)


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
