"""VllmCore: a vLLM EngineCore as the core of an engine host, driven by vLLM's own async client.

vLLM internals used here (0.32): EngineCoreClient.make_async_mp_client, Executor.get_class,
EngineCoreRequest/Outputs, SchedulerStats, RayPrometheusStatLogger, freeze_gc_heap, and what
resume_plugin.py names.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psutil
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.cluster.labels import FinishReason, StartPhase
from qwenfleet.deployments.engine_host.compile_watch import Compiles
from qwenfleet.deployments.engine_host.core import CoreDead, CoreStep
from qwenfleet.deployments.registry.stages import StageClock
from qwenfleet.deployments.telemetry.pod_log import PodLog
from qwenfleet.deployments.vllm_adapter import codec, logging_setup, processes, request_checks
from qwenfleet.deployments.vllm_adapter.compile_report import CompileReport
from qwenfleet.deployments.vllm_adapter.core_log import CoreLog
from qwenfleet.deployments.vllm_adapter.engine_args import engine_args
from qwenfleet.deployments.vllm_adapter.failure_log import sentence
from qwenfleet.deployments.vllm_adapter.resume_plugin import (
    CARRIED,
    PROMPT_TOKENS,
    RECEIVED_TOKENS,
)
from qwenfleet.deployments.vllm_adapter.warm_up import WarmUp, own_request
from qwenfleet.deployments.wire.frames import EngineDescription, Output, RankLoad, Submit

if TYPE_CHECKING:
    from qwenfleet.deployments.vllm_adapter.followers import Followers

logger = logging.getLogger(__name__)

CORE_TITLE: Final = "EngineCore"
"""vLLM 0.32 v1/engine/core.py, run_engine_core."""
IMPORT_POLL_S: Final = 0.25


class VllmCore:
    """Implements `core.Core` over one EngineCoreClient, which covers all data-parallel ranks of the
    engine."""

    def __init__(
        self,
        model: ModelConfig,
        path: str,
        traces_url: str | None = None,
        stages: StageClock | None = None,
        followers: Followers | None = None,
        pod_log: PodLog | None = None,
    ) -> None:
        self._model = model
        self._path = path
        self._traces_url = traces_url
        self._followers = followers
        self._log = CoreLog(pod_log or PodLog())
        self._lost_part = ""
        """The process or node that was lost, and why; empty while all are alive."""
        self._is_ending = False
        self._tasks: list[asyncio.Task[None]] = []
        self._stages = stages or StageClock()
        self._client: AsyncMPClient | None = None
        self._load: dict[int, RankLoad] = {}
        self._stats: PrometheusStatLogger | None = None
        self._probes = itertools.count()
        self._config: VllmConfig | None = None
        self._compile_report = CompileReport()
        self.draft: EngineDescription | None = None

    async def start(self) -> EngineDescription:
        if self._followers is not None:
            self._tasks.append(asyncio.create_task(self._follow(self._followers)))
        try:
            self._stages.begin(StartPhase.READING_CONFIG)
            config = await asyncio.to_thread(self._create_config)
            self.draft = EngineDescription(
                max_model_len=config.model_config.max_model_len,
                vllm_version=codec.vllm_version(),
            )
            self._client = await self._start_core(config)
        except (ValueError, TypeError, OSError, RuntimeError, TimeoutError) as error:
            raise EngineStartError(self._model.id, self._reason(sentence(error))) from error
        ranks = self._alive.engine_ranks_managed
        self._load = {rank: RankLoad(dp_rank=rank) for rank in ranks}
        self._stats = RayPrometheusStatLogger(config, engine_indexes=list(ranks))
        self._config = config
        self._stages.begin(StartPhase.WARMING_UP)
        warm_up = WarmUp(self._model.id, self._alive, self._next)
        for rank in ranks:
            await warm_up.run(rank)
        await processes.watch(self._member_ended)
        freeze_gc_heap()  # as vLLM's own server does after its start
        cache = config.cache_config
        return EngineDescription(
            max_model_len=config.model_config.max_model_len,
            block_size=cache.block_size or 0,
            num_gpu_blocks=(cache.num_gpu_blocks or 0) // len(ranks),
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            data_parallel_size=config.parallel_config.data_parallel_size,
            hash_algorithm=str(cache.prefix_caching_hash_algo),
            vllm_version=codec.vllm_version(),
        )

    async def add(self, wire_id: str, submit: Submit) -> None:
        request = codec.decode_request(submit.request)
        params = request_checks.check(request, submit, self._vllm_config)
        request.request_id = wire_id
        request.prompt_token_ids = None  # the core's process makes the list
        request.priority = submit.priority
        request.cache_salt = submit.cache_salt
        request.data_parallel_rank = submit.dp_rank
        request.trace_headers = submit.trace_headers
        request.resumable = request.abort_immediately = False
        self._carry_tokens(params, submit)
        try:
            await self._alive.add_request_async(request)
        except EngineDeadError as error:
            raise CoreDead("the engine core process is dead") from error
        if params.structured_outputs is not None:
            self._compile_report.expect()

    async def abort(self, wire_ids: list[str]) -> None:
        try:
            await self._alive.abort_requests_async(wire_ids)
        except EngineDeadError:
            logger.info("core is dead, abort skipped", extra={"requests": len(wire_ids)})

    async def probe(self) -> None:
        """Ask the core for one step. The output's id is unknown to the host, which ignores it."""
        params = SamplingParams(temperature=0.0, max_tokens=1)
        try:
            await self._alive.add_request_async(own_request(f"probe-{next(self._probes)}", params))
        except EngineDeadError:
            logger.info("core is dead, probe skipped")

    def compiles(self) -> Compiles:
        return self._compile_report.look(self._alive)

    def cpu_s(self) -> float | None:
        """CPU seconds used so far by the core, its workers and their children; None if none is
        left.

        A child that has ended counts as long as its parent lives, so the total rarely decreases.
        """
        total = None
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                total = (total or 0.0) + sum(process.cpu_times()[:4])
        return total

    async def next_step(self) -> CoreStep:
        outputs = (await self._next()).outputs
        scheduled = None
        if self._traces_url is not None:
            at = [(output.request_id, codec.scheduled_at(output)) for output in outputs]
            scheduled = [(wire_id, when) for wire_id, when in at if when is not None]
        return CoreStep(self._to_wire(outputs), self._loads(), scheduled)

    def _to_wire(self, outputs: list[EngineCoreOutput]) -> list[Output[str]]:
        """Convert a step's outputs; one that does not encode ends its own request."""
        converted = []
        for output in outputs:
            try:
                converted.append(codec.to_wire(output))
            except Exception:
                logger.exception("failed to encode an output", extra={"attempt": output.request_id})
                converted.append(Output(output.request_id, [], finish_reason=FinishReason.ERROR))
        return converted

    def shutdown(self) -> None:
        self._is_ending = True
        if self._followers is not None:
            self._followers.end()
        if self._client is not None:
            self._client.shutdown(timeout=1.0)
        self._log.close()

    @property
    def _alive(self) -> AsyncMPClient:
        assert self._client is not None, "start() has not returned"
        return self._client

    @property
    def _vllm_config(self) -> VllmConfig:
        assert self._config is not None, "start() has not returned"
        return self._config

    def _create_config(self) -> Any:
        place = None if self._followers is None else self._followers.head
        arguments = engine_args(self._model, self._path, self._traces_url, place)
        return logging_setup.create_engine_config(arguments, self._log)

    def _reason(self, otherwise: str) -> str:
        """Which part was lost, if that is known, and what the first process to fail logged."""
        found = [part for part in (self._lost_part, self._log.reason()) if part]
        return ": ".join(found) or otherwise

    async def _start_core(self, config: VllmConfig) -> AsyncMPClient:
        self._stages.begin(StartPhase.IMPORTING_VLLM_IN_CORE)
        import_watch = asyncio.create_task(self._watch_import())
        try:
            return await asyncio.to_thread(
                EngineCoreClient.make_async_mp_client, config, Executor.get_class(config), True
            )
        finally:
            import_watch.cancel()
            await asyncio.wait({import_watch})

    async def _follow(self, followers: Followers) -> None:
        """Kill this node's processes when another node is lost: they would wait for it forever."""
        lost_part = await followers.first_end()
        if self._is_ending:  # shutdown() ended them
            return
        self._lost_part = lost_part
        logger.error("lost a node of the engine", extra={"reason": self._lost_part})
        while True:  # also a core that is about to start
            processes.kill()
            await asyncio.sleep(1.0)

    def _member_ended(self, title: str) -> None:
        """Kill all ranks when one ends, because none can continue alone; vLLM then reports a dead
        core."""
        if not self._is_ending and not self._lost_part:
            self._lost_part = f"its process {title} exited"
            logger.error("an engine process exited", extra={"title": title})
            processes.kill()

    async def _watch_import(self) -> None:
        """Begin the loading stage when a core has set its process title, after importing vLLM."""
        while not await asyncio.to_thread(_has_core):  # noqa: ASYNC110 # vLLM has no event for it
            await asyncio.sleep(IMPORT_POLL_S)
        self._stages.begin(StartPhase.LOADING)

    async def _next(self) -> EngineCoreOutputs:
        try:
            outputs: EngineCoreOutputs = await self._alive.get_output_async()
        except EngineDeadError as error:
            raise CoreDead(self._reason("the engine core process died")) from error
        stats = outputs.scheduler_stats
        if stats is not None:
            rank = outputs.engine_index
            self._load[rank] = RankLoad(
                dp_rank=rank,
                running=stats.num_running_reqs,
                waiting=stats.num_waiting_reqs + stats.num_skipped_waiting_reqs,
                kv_usage=stats.kv_cache_usage,
            )
            if self._stats is not None:
                self._stats.record(stats, None, engine_idx=rank)
        return outputs

    def _loads(self) -> list[RankLoad]:
        return list(self._load.values())

    def _carry_tokens(self, params: SamplingParams, submit: Submit) -> None:
        """Pass the prompt and the tokens of earlier attempts to the plugin in the core, and never
        tokens that a client set. Raises ValueError if none are left to generate."""
        tokens = submit.output_token_ids
        extra = {k: v for k, v in (params.extra_args or {}).items() if k not in CARRIED}
        extra[PROMPT_TOKENS] = submit.prompt_token_ids.pack()
        room = self._vllm_config.model_config.max_model_len - len(submit.prompt_token_ids)
        if tokens:
            extra[RECEIVED_TOKENS] = tokens.pack()
            if len(tokens) >= min(room, params.max_tokens or room):
                raise ValueError(f"no tokens left to generate after {len(tokens)}")
        params.extra_args = extra


def _has_core() -> bool:
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if CORE_TITLE in " ".join(process.cmdline()):
                return True
    return False
