"""A vLLM EngineCore as a fleet core: started, warmed up and spoken to through vLLM's own async
client.

vLLM internals used here (0.32): AsyncEngineArgs, EngineCoreClient.make_async_mp_client,
Executor.get_class, EngineCoreRequest/Output(s), SchedulerStats, MsgpackEncoder/Decoder and
RayPrometheusStatLogger.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, cast

import msgspec
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from qwenfleet.cluster.config import ModelConfig
from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.deployments.core import CoreDead, CoreStep
from qwenfleet.deployments.transport import EngineDescription, Output, RankLoad, Submit

logger = logging.getLogger(__name__)

GIB: Final = 1024**3
WARM_UP_TOKENS: Final = 3
WARM_UP_TIMEOUT_S: Final = 600.0
"""The first sampling or logprobs request compiles: 14.5 s was seen on two busy cores, minutes on a
GPU."""


def engine_args(model: ModelConfig, path: str) -> AsyncEngineArgs:
    """The arguments of this model's engine: the configuration's fields, then its `engine_args` as
    they are."""
    arguments: dict[str, Any] = {"enable_log_requests": False}
    if current_platform.is_cpu():
        arguments["kv_cache_memory_bytes"] = int(model.kv_cache_gib * GIB)
    arguments |= model.engine_args
    arguments |= {"model": path, "served_model_name": [model.id]}
    if model.max_model_len is not None:
        arguments["max_model_len"] = model.max_model_len
    return AsyncEngineArgs(**arguments)


class VllmCore:
    """Implements `core.Core` over one EngineCoreClient; all data-parallel ranks of the engine are
    in it."""

    def __init__(self, model: ModelConfig, path: str) -> None:
        self._model = model
        self._path = path
        self._client: AsyncMPClient | None = None
        self._encoder = MsgpackEncoder(size_threshold=1 << 40)  # no out-of-band buffers
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._load: dict[int, RankLoad] = {}
        self._stats: PrometheusStatLogger | None = None

    async def start(self) -> EngineDescription:
        try:
            config = await asyncio.to_thread(self._create_config)
            self._client = await asyncio.to_thread(
                EngineCoreClient.make_async_mp_client, config, Executor.get_class(config), True
            )
        except (ValueError, TypeError, OSError, RuntimeError, TimeoutError) as error:
            raise EngineStartError(self._model.id, _first_sentence(error)) from error
        ranks = self._alive.engine_ranks_managed
        self._load = {rank: RankLoad(dp_rank=rank) for rank in ranks}
        self._stats = RayPrometheusStatLogger(config, engine_indexes=list(ranks))
        await self._warm_up()
        cache = config.cache_config
        return EngineDescription(
            max_model_len=config.model_config.max_model_len,
            block_size=cache.block_size or 0,
            num_gpu_blocks=cache.num_gpu_blocks or 0,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            data_parallel_size=config.parallel_config.data_parallel_size,
            hash_algorithm=str(cache.prefix_caching_hash_algo),
            vllm_version=_vllm_version(),
        )

    async def add(self, wire_id: str, submit: Submit) -> None:
        if submit.output_token_ids:
            raise ValueError("this engine cannot go on behind tokens of an earlier attempt")
        try:
            request: EngineCoreRequest = self._decoder.decode(submit.request)
        except msgspec.DecodeError as error:
            raise ValueError(f"the request does not decode as vLLM's: {error}") from error
        request.request_id = wire_id
        request.prompt_token_ids = submit.prompt_token_ids
        request.priority = submit.priority
        request.cache_salt = submit.cache_salt
        request.data_parallel_rank = submit.dp_rank
        try:
            await self._alive.add_request_async(request)
        except EngineDeadError as error:
            raise ValueError("the engine core is dead") from error

    async def abort(self, wire_ids: list[str]) -> None:
        try:
            await self._alive.abort_requests_async(wire_ids)
        except EngineDeadError:
            logger.info("abort after the core's death", extra={"requests": len(wire_ids)})

    async def next_step(self) -> CoreStep:
        outputs = await self._next()
        return CoreStep([self._to_wire(output) for output in outputs.outputs], self._loads())

    def shutdown(self) -> None:
        if self._client is not None:
            self._client.shutdown(timeout=1.0)

    @property
    def _alive(self) -> AsyncMPClient:
        assert self._client is not None, "start() has not returned"
        return self._client

    def _create_config(self) -> Any:
        return engine_args(self._model, self._path).create_engine_config()

    async def _next(self) -> EngineCoreOutputs:
        try:
            outputs: EngineCoreOutputs = await self._alive.get_output_async()
        except EngineDeadError as error:
            raise CoreDead("the engine core process died") from error
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

    def _to_wire(self, output: EngineCoreOutput) -> Output:
        plain = (
            output.new_logprobs is None
            and output.new_prompt_logprobs_tensors is None
            and output.events is None
            and output.kv_transfer_params is None
            and output.trace_headers is None
            and output.routed_experts is None
            and output.spec_decode_metrics is None
            and output.prompt_token_id_logprobs is None
            and not output.num_nans_in_logits
        )
        stats = output.prefill_stats
        return Output(
            wire_id=output.request_id,
            token_ids=list(output.new_token_ids),
            finish_reason=None if output.finish_reason is None else int(output.finish_reason),
            stop_reason=output.stop_reason,
            cached_tokens=stats.num_cached_tokens if stats is not None else None,
            extra=None if plain else cast(bytes, self._encoder.encode(output)[0]),
        )

    async def _warm_up(self) -> None:
        """Run what compiles on first use, sampling and logprobs, then a greedy request."""
        await self._complete(
            "warm-up-sampling",
            SamplingParams(
                temperature=0.7,
                top_p=0.8,
                top_k=20,
                repetition_penalty=1.05,
                seed=0,
                logprobs=1,
                max_tokens=WARM_UP_TOKENS,
                ignore_eos=True,
            ),
        )
        await self._complete(
            "warm-up-greedy",
            SamplingParams(temperature=0.0, max_tokens=WARM_UP_TOKENS, ignore_eos=True),
        )

    async def _complete(self, request_id: str, params: SamplingParams) -> None:
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(range(1, 9)),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        tokens = 0
        try:
            async with asyncio.timeout(WARM_UP_TIMEOUT_S):
                await self._alive.add_request_async(request)
                while tokens < WARM_UP_TOKENS:
                    for output in (await self._next()).outputs:
                        tokens += len(output.new_token_ids)
        except TimeoutError as error:
            raise EngineStartError(
                self._model.id, f"the warm-up made {tokens} tokens in {WARM_UP_TIMEOUT_S:.0f} s"
            ) from error
        except CoreDead as error:
            raise EngineStartError(self._model.id, "the engine core died in its warm-up") from error


def _vllm_version() -> str:
    from vllm import __version__

    return str(__version__)


def _first_sentence(error: BaseException) -> str:
    """What an operator needs of a vLLM start error, without the stack that vLLM appends to some."""
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split("Traceback")[0].split())[:600]
