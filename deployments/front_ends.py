"""Front ends: at one gateway, vLLM's app of each model and the links to the model's engines."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.labels import EngineState, StartPhase
from qwenfleet.cluster.models import sources
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.ingress.served import Served
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.registry.stages import StageClock, seconds_of
from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics
from qwenfleet.deployments.wire.frames import EngineDescription, pairs
from qwenfleet.deployments.wire.lease_keeper import LeaseKeeper

if TYPE_CHECKING:
    from qwenfleet.deployments.vllm_adapter.front_end import FrontEnd

logger = logging.getLogger(__name__)

WAITS: Final[tuple[str, ...]] = (StartPhase.QUEUED, StartPhase.HELD)
"""Stages in which an engine waits for something else, so that they say nothing about a start."""


class FrontEnds:
    """Connects a gateway's models to their engines and builds their apps."""

    def __init__(
        self,
        config: FleetConfig,
        models: Mapping[str, Served],
        metrics: GatewayMetrics,
        gateway: str,
        stages: StageClock,
        report: Callable[[str, Exception], Awaitable[None]],
    ) -> None:
        """`report` is called with a model whose app cannot be built, and why."""
        self._config = config
        self._models = models
        self._metrics = metrics
        self._gateway = gateway
        self._stages = stages
        self._report = report
        self._leases = LeaseKeeper()
        self._dispatchers: dict[str, Dispatcher] = {}
        self._built: dict[str, FrontEnd] = {}
        self._building: asyncio.Task[None] | None = None
        self._vllm_version = ""
        self._awaits_version: dict[str, bool] = {}
        """Whether the ready engines of a model all have another vLLM."""

    async def load(self) -> None:
        """Import vLLM off the loop. Raises what the import raises."""
        self._stages.begin(StartPhase.IMPORTING_VLLM)
        await asyncio.to_thread(
            importlib.import_module, "qwenfleet.deployments.vllm_adapter.front_end"
        )
        from qwenfleet.deployments.vllm_adapter import client_faults, codec

        client_faults.install()
        self._vllm_version = codec.vllm_version()
        for name, served in self._models.items():
            dispatcher = Dispatcher(
                name,
                gateway=self._gateway,
                wire=self._config.wire,
                retry_after_s=self._config.gateway.retry_after_s,
                metrics=self._metrics,
                vllm_version=self._vllm_version,
                leases=self._leases,
            )
            self._dispatchers[name] = served.engines = dispatcher
        self._stages.begin("waiting for an engine")

    async def keep_leases(self) -> None:
        """Renew the leases of all links, whatever this process does, until this is canceled."""
        await self._leases.run()

    def report(self) -> None:
        """Report the work that waits in this process; called once or twice a second."""
        for name, dispatcher in self._dispatchers.items():
            built = self._built.get(name)
            self._metrics.pressure(
                name,
                rendering={} if built is None else built.rendering,
                backlog_bytes=dispatcher.backlog_bytes,
            )

    def meet(self, engines: Sequence[EngineRecord]) -> None:
        """Connect to the listed engines, and begin to build the next app that can be built."""
        for name, served in self._models.items():
            ours = [engine for engine in engines if engine.model == name]
            listed = [engine for engine in ours if engine.state == EngineState.READY]
            ready = [engine for engine in listed if self._pairs(engine)]
            self._awaits_version[name] = bool(listed) and not ready
            starts = [seconds_of(engine.stages, but=WAITS) for engine in ready]
            served.note_listing(bool(ready), max(starts, default=0.0))
            self._dispatchers[name].update(ours)
            self._look(served)
        if self.is_building:
            return
        for name, served in self._models.items():
            description = self._dispatchers[name].description or self._announced(engines, name)
            if name not in self._built and not served.is_broken and description is not None:
                self._building = asyncio.create_task(self._build(served, description))
                return

    @property
    def is_building(self) -> bool:
        return self._building is not None and not self._building.done()

    @property
    def awaits_version(self) -> bool:
        """Whether a model has ready engines, but none with this process's vLLM: an upgrade."""
        return any(self._awaits_version.values())

    @property
    def errored(self) -> str:
        """A model whose front end has failed for good; empty if none has."""
        for name, built in self._built.items():
            if built.is_errored:
                return name
        return ""

    @property
    def are_all_broken(self) -> bool:
        return all(served.is_broken for served in self._models.values())

    def close(self) -> None:
        if self._building is not None:
            self._building.cancel()

    async def _build(self, served: Served, description: EngineDescription) -> None:
        from qwenfleet.deployments.vllm_adapter import front_end
        from qwenfleet.deployments.vllm_adapter.model_client import ModelClient

        model = served.config
        self._stages.begin(f"building the app of {model.id}")
        try:
            path = await asyncio.to_thread(sources.locate, model.resolved_source, logger.info)
            config = self._config
            gateway = config.gateway
            client = ModelClient(
                self._dispatchers[model.id], logprob_values=gateway.limits.logprob_values
            )
            built = await front_end.build(
                model,
                path,
                description,
                client,
                config.traces_url,
                limits=gateway.limits,
                grammar=gateway.grammar,
            )
        except Exception as error:  # one model's template or parser must not stop the others
            served.is_broken = True
            logger.exception("model app failed to build", extra={"model": model.id})
            await self._report(model.id, error)
        else:
            self._built[model.id] = built
            logger.info("model app built", extra={"model": model.id})
        self._look(served)
        self._stages.end()

    def _look(self, served: Served) -> None:
        """Hand over the app once an engine is connected. The app follows the engines' limits, so
        one that was built while they loaded serves too."""
        built = self._built.get(served.config.id)
        if built is not None and self._dispatchers[served.config.id].description is not None:
            served.app, served.default_parameters = built.app, built.default_parameters
        served.look()

    def _announced(self, engines: Sequence[EngineRecord], model: str) -> EngineDescription | None:
        """What an engine has announced, which it does before it is ready."""
        for engine in engines:
            if engine.model == model and engine.description is not None and self._pairs(engine):
                return engine.description
        return None

    def _pairs(self, engine: EngineRecord) -> bool:
        """Whether an engine has this process's version of vLLM, or an unknown one."""
        return engine.description is None or pairs(
            self._vllm_version, engine.description.vllm_version
        )
