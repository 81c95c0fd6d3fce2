"""Engine: the Serve deployment of one model's engines; its replica process is the EngineHost.

The constructor returns after the engine has answered its warm-up, so Serve's HEALTHY means that
the engine serves. When the core dies, the process exits at once: Serve sees a dead actor and
starts another. A failing health check would take longer: Serve requires three failures in a row.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import time
from contextlib import suppress
from functools import partial
from typing import Any, Final

import ray
from ray import serve

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.cluster.kube import node_watch
from qwenfleet.cluster.kube.departure import Departure
from qwenfleet.cluster.kube.node_watch import NodeWatch
from qwenfleet.cluster.labels import EngineState, StartPhase
from qwenfleet.cluster.models import sources
from qwenfleet.deployments.engine_host.core import Core, CoreDead
from qwenfleet.deployments.engine_host.engine_metrics import EngineMetrics
from qwenfleet.deployments.engine_host.host import EngineHost
from qwenfleet.deployments.environment import ENGINE_SERVICE
from qwenfleet.deployments.placement import engine_nodes, wire_host
from qwenfleet.deployments.registry.client import ANNOUNCE_INTERVAL_S, RegistryClient
from qwenfleet.deployments.registry.records import DrainOrder, EngineRecord, StartFailure
from qwenfleet.deployments.registry.stages import StageClock
from qwenfleet.deployments.telemetry.instruments import reporting
from qwenfleet.deployments.telemetry.logs import join_serve_log
from qwenfleet.deployments.telemetry.pod_log import PodLog
from qwenfleet.deployments.telemetry.tracing import tracing_of
from qwenfleet.deployments.vllm_adapter import plugin_metadata
from qwenfleet.deployments.vllm_adapter.followers import Followers, start_followers
from qwenfleet.deployments.wire.frames import EngineDescription

logger = logging.getLogger(__name__)

CORE_DEAD_EXIT_CODE: Final = 70
"""EX_SOFTWARE of sysexits.h."""
REPORT_S: Final = 0.5
"""Time to report why the process ends; Serve starts another as soon as it has ended."""
DRAIN_S: Final = 10.0
"""Time for streams to move when Serve stops an engine; within graceful_shutdown_timeout_s. Streams
that have not moved by then wait in their gateway."""


@serve.deployment
class Engine:
    """One engine of one model, from waiting for its start to its last announcement."""

    async def __init__(  # type: ignore[misc] # Serve awaits it
        self,
        config: dict[str, Any],
        model: str,
        pool: str = "",
        is_on_one_machine: bool = False,
    ) -> None:
        self._fleet = FleetConfig.model_validate(config)
        self._model = next(m for m in self._fleet.models if m.id == model)
        self._pool = pool
        self._is_on_one_machine = is_on_one_machine
        context = ray.get_runtime_context()
        self._node = context.get_node_id()
        self._nodes = await asyncio.to_thread(engine_nodes)
        replica = serve.get_replica_context()
        self._id = replica.replica_id.unique_id
        fields = {"fleet": self._fleet.name, "model": model, "engine": self._id}
        self._pod_log = PodLog(self._fleet.logging.format, fields)
        self._log_file = join_serve_log(self._pod_log)
        self._secret = secrets.token_hex(16)
        self._registry = RegistryClient(self._fleet.name)
        self._metrics = EngineMetrics(self._fleet.name, replica.deployment)
        self._metrics.begin(model)
        self._tracing = tracing_of(self._fleet, service=ENGINE_SERVICE, instance=self._id)
        self._state = EngineState.STARTING
        self._reason = ""
        self._drain_until = math.inf
        """Latest end of the drain, on the monotonic clock."""
        self._drain_began = math.inf
        self._replaces = ""
        """The drained engine in whose place this one starts; empty if there is none."""
        self._stages = StageClock()
        self._stages.begin(StartPhase.QUEUED)
        self._may_load = asyncio.Event()
        self._has_news = asyncio.Event()
        """Set to send the next announcement at once."""
        self._host: EngineHost | None = None
        self._core: Core | None = None
        self._address = ("", 0)
        self._description: EngineDescription | None = None
        self._tasks = [asyncio.create_task(self._announce())]
        await self._begin()

    async def _begin(self) -> None:
        """Wait for this engine's turn, then load. Raises what kept it from starting."""
        watch = await self._turn()
        self._stages.begin(StartPhase.STARTING)
        self._has_news.set()
        try:
            await self._start()
        except Exception as error:
            extra = {"engine": self._id, "reason": str(error)}
            logger.exception("engine did not start", extra=extra)
            await self._give_up(error)
            raise
        self._tasks.append(asyncio.create_task(self._run()))
        if watch is not None:
            watch.on_departure(self._depart)

    async def _turn(self) -> NodeWatch | None:
        """Wait until this engine may load; returns the watch of its nodes, if there is one."""
        turn = asyncio.create_task(self._may_load.wait())
        await asyncio.wait({turn, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        watch = await node_watch.start(self._nodes.values())
        if watch is not None:
            await watch.may_start(partial(self._stages.begin, StartPhase.HELD))
        return watch

    async def check_health(self) -> None:
        """Fail if a background task has ended, so that Serve replaces the replica."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"engine {self._id}: a background task ended")

    async def __del__(self) -> None:
        """Drain, then shut down. Serve awaits this when it stops the replica."""
        await self._drain(DrainOrder("the engine is being stopped", DRAIN_S))
        for task in self._tasks:
            task.cancel()
        await self._registry.withdraw(self._id, self._reason)
        if self._core is not None:
            await asyncio.to_thread(self._core.shutdown)
        await self._send_last_spans()

    async def _drain(self, order: DrainOrder) -> None:
        self._state, self._reason = EngineState.DRAINING, order.reason
        self._drain_began = time.monotonic()
        self._drain_until = self._drain_began + order.deadline_s
        if self._host is not None:
            await self._host.drain(order.reason, order.deadline_s)

    def _leave(self, order: DrainOrder) -> None:
        """Start or shorten a drain. Of several orders, the earliest deadline wins."""
        until = time.monotonic() + order.deadline_s
        if until >= self._drain_until:  # includes a repeated order
            return
        self._drain_until, self._reason = until, order.reason
        logger.info("drain ordered", extra={"engine": self._id, "reason": order.reason})
        if self._state is not EngineState.DRAINING:
            self._state = EngineState.DRAINING
            self._tasks.append(asyncio.create_task(self._obey()))
        elif self._host is not None:
            self._host.hasten(order.reason, order.deadline_s)

    def _depart(self, departure: Departure) -> None:
        """Drain because a pod or node of this engine is about to stop."""
        self._leave(DrainOrder(departure.reason, departure.deadline_s))

    async def _obey(self) -> None:
        """Drain, then end the process; Serve starts another engine in its place."""
        left_s = max(0.0, self._drain_until - time.monotonic())
        await self._drain(DrainOrder(self._reason, left_s))
        for task in self._tasks:  # an announcement would list this engine again
            if task is not asyncio.current_task():
                task.cancel()
        await self._registry.withdraw(self._id, self._reason, is_replaced=True)
        if self._core is not None:
            await asyncio.to_thread(self._core.shutdown)
        await self._send_last_spans()
        os._exit(0)

    async def _send_last_spans(self) -> None:
        await asyncio.to_thread(self._tracing.close)

    async def _start(self) -> None:
        traces_url = self._fleet.traces_url
        spans_nodes = self._model.sharding.nodes > 1
        followers = None
        if spans_nodes:
            followers = start_followers(self._model, traces_url, self._pod_log)
        core = self._core = await asyncio.to_thread(
            _make_core, self._model, traces_url, self._stages, followers, self._pod_log
        )
        description = await core.start()
        self._host = EngineHost(
            core,
            engine=self._id,
            model=self._model.id,
            secret=self._secret,
            description=description,
            wire=self._fleet.wire,
            spans=self._tracing.spans,
        )
        self._address = await self._host.listen(wire_host(self._is_on_one_machine))
        self._description = description
        self._stages.end()
        self._state = EngineState.READY
        self._has_news.set()
        logger.info("engine ready", extra={"engine": self._id, "model": self._model.id})

    async def _run(self) -> None:
        assert self._host is not None
        reason = "its host ended"
        try:
            await self._host.run()
        except CoreDead as dead:
            reason = f"its core died: {dead}"
            logger.error("engine core died", extra={"engine": self._id, "reason": str(dead)})
        except Exception:  # end the process: Serve starts another
            logger.exception("engine host failed", extra={"engine": self._id})
        self._tasks[0].cancel()  # an announcement would list this engine again
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_S):
                await self._registry.withdraw(self._id, reason)
        await self._send_last_spans()
        os._exit(CORE_DEAD_EXIT_CODE)

    async def _give_up(self, error: Exception) -> None:
        """Report to the registry why this engine does not start."""
        reason = error.reason if isinstance(error, EngineStartError) else str(error)
        self._tasks[0].cancel()
        if self._core is not None:
            await asyncio.to_thread(self._core.shutdown)
        await self._registry.report_failure(
            StartFailure(self._id, self._model.id, reason, self._log_file)
        )

    async def _announce(self) -> None:
        cores = len(os.sched_getaffinity(0))
        while True:
            record = self._record()
            orders = await self._registry.announce_engine(record, cores)
            if orders.may_load:
                self._may_load.set()
            self._replaces = self._replaces or orders.replaces
            if orders.drain is not None:
                self._leave(orders.drain)
            with reporting():
                self._report(record)
            with suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_INTERVAL_S):
                    await self._has_news.wait()
            self._has_news.clear()

    def _report(self, record: EngineRecord) -> None:
        self._metrics.record(record, [] if self._host is None else self._host.load)
        if self._drain_until < math.inf:
            for_s = time.monotonic() - self._drain_began
            self._metrics.draining(record, for_s, self._drain_until - self._drain_began)
        if self._host is not None:
            self._metrics.orphans(self._model.id, self._host.orphans)

    def _record(self) -> EngineRecord:
        load = self._host.load if self._host is not None else []
        state, reason = self._state, self._reason
        if state is EngineState.READY and self._host is not None and self._host.quarantine:
            state, reason = EngineState.QUARANTINED, self._host.quarantine
        return EngineRecord(
            id=self._id,
            model=self._model.id,
            pool=self._pool,
            node=self._node,
            nodes=tuple(self._nodes),
            pid=os.getpid(),
            state=state,
            reason=reason,
            is_loading=self._state is EngineState.STARTING and self._may_load.is_set(),
            host=self._address[0],
            port=self._address[1],
            secret=self._secret,
            description=self._description or (self._core.draft if self._core else None),
            running=sum(rank.running for rank in load),
            waiting=sum(rank.waiting for rank in load),
            kv_usage=max((rank.kv_usage for rank in load), default=0.0),
            stages=self._stages.stages,
            replaces=self._replaces if self._state is EngineState.STARTING else "",
        )


def _make_core(
    model: ModelConfig,
    traces_url: str | None,
    stages: StageClock,
    followers: Followers | None,
    pod_log: PodLog,
) -> Core:
    """Make the configured core. vLLM is imported only if needed: the import takes 9 s of CPU."""
    if model.engine == "scripted":
        from qwenfleet.deployments.engine_host.scripted_core import ScriptedCore

        return ScriptedCore(model)
    stages.begin(StartPhase.FINDING_MODEL)
    path = sources.locate(model.resolved_source, lambda text: logger.info(text))
    stages.begin(StartPhase.IMPORTING_VLLM)
    plugin_metadata.ensure()
    from qwenfleet.deployments.vllm_adapter.core import VllmCore

    return VllmCore(model, path, traces_url, stages, followers, pod_log)
