"""FleetClient: the `engine_core` of an otherwise unchanged AsyncLLM, over every engine of one
model.

AsyncLLM sees one engine, index 0, for ever: an index that it does not know, or an exception out of
`get_output_async`, ends every stream of its process (vLLM 0.32 async_llm.py, output_handler). So
nothing here raises towards the output handler, and a request that cannot go on is told to its
exchange instead.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, cast

from vllm.sampling_params import SamplingParams, SamplingType
from vllm.v1.engine import (
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.ingress.errors import GatewayFailed
from qwenfleet.deployments.ingress.exchange import current_exchange
from qwenfleet.deployments.registry.client import EngineRecord
from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics
from qwenfleet.deployments.wire.frames import EngineDescription, Output

logger = logging.getLogger(__name__)

SEED_BITS: Final = 63
"""vLLM takes seeds as signed 64-bit integers."""


@dataclass
class _Resources:
    """What AsyncLLM looks at to see whether its engine lives: the fleet as a whole always does."""

    engine_dead: bool = False


class FleetClient:
    """Implements the part of vLLM's EngineCoreClient that AsyncLLM calls for text generation."""

    def __init__(
        self,
        model: str,
        *,
        gateway: str,
        wire: WireConfig,
        retry_after_s: int,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.engine_ranks_managed = [0]
        self.resources = _Resources()
        self._clock = clock
        self._rng = rng or random.Random()
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._dispatcher = Dispatcher(
            model,
            gateway=gateway,
            wire=wire,
            retry_after_s=retry_after_s,
            metrics=metrics,
            deliver=self._deliver,
            fail=self._fail,
            clock=clock,
            rng=self._rng,
        )
        self._encoder = MsgpackEncoder(size_threshold=1 << 40)  # no out-of-band buffers
        self._decoder = MsgpackDecoder(EngineCoreOutput)

    # The fleet.

    def update(self, records: Iterable[EngineRecord]) -> None:
        """Connect to the engines of this model that we do not know yet."""
        self._dispatcher.update(records)

    @property
    def description(self) -> EngineDescription | None:
        """What the engines of this model are; None until one was met."""
        return self._dispatcher.description

    @property
    def num_engines(self) -> int:
        """Engines that a request could be sent to now."""
        return self._dispatcher.num_engines

    @property
    def num_moving(self) -> int:
        """Requests that wait for an engine, or for their turn to leave one."""
        return self._dispatcher.num_moving

    # What AsyncLLM calls.

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        exchange = current_exchange()
        prompt = request.prompt_token_ids or []
        params = self._seeded(request.sampling_params)
        bare = copy.copy(request)  # the front end shares the original's lists
        bare.prompt_token_ids = None
        bare.trace_headers = None
        bare.sampling_params = params
        self._dispatcher.add(
            Flight(
                request_id=request.request_id,
                prompt_token_ids=prompt,
                payload=cast(bytes, self._encoder.encode(bare)[0]),
                max_tokens=None if params is None else params.max_tokens,
                priority=request.priority,
                cache_salt=request.cache_salt,
                exchange=exchange,
                trace_headers=request.trace_headers,
            )
        )
        if exchange is not None:
            exchange.note_prompt(len(prompt))

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self._dispatcher.abort(request_ids)

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    def shutdown(self, timeout: float | None = None) -> None:
        self._dispatcher.close()

    # What the dispatcher calls.

    def _deliver(
        self, outputs: list[tuple[Flight, Output, bool]], shift_s: float, now: float
    ) -> None:
        translated = []
        for flight, output, is_first in outputs:
            try:
                translated.append(self._to_vllm(flight, output, is_first, shift_s))
            except Exception:  # one odd output must not end the streams of all others
                logger.exception("output not decoded", extra={"request": flight.request_id})
                self._dispatcher.abort([flight.request_id])
                self._fail(flight, GatewayFailed())
                continue
            if flight.exchange is not None:
                cached = (output.cached_tokens or 0) if is_first else 0
                flight.exchange.note_tokens(len(output.token_ids), cached, now, flight.gap_s)
        self._outputs.put_nowait(
            EngineCoreOutputs(engine_index=0, outputs=translated, timestamp=now)
        )

    def _fail(self, flight: Flight, error: FleetError) -> None:
        """End a request with an error; one outside any exchange ends as vLLM ends its own."""
        if flight.exchange is not None:
            flight.exchange.fail(error)
            return
        ended = EngineCoreOutput(
            request_id=flight.request_id,
            new_token_ids=[],
            finish_reason=FinishReason.ERROR,
        )
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[ended], timestamp=self._clock()))

    # One request.

    def _seeded(self, params: SamplingParams | None) -> SamplingParams | None:
        """A request that samples has a seed, so that another engine draws what its own would have
        drawn."""
        if params is None or params.sampling_type is not SamplingType.RANDOM:
            return params
        seeded = copy.copy(params)
        seeded.__dict__.pop("sampling_type", None)
        seeded.seed = self._rng.getrandbits(SEED_BITS)
        return seeded

    def _to_vllm(
        self, flight: Flight, output: Output, is_first: bool, shift_s: float
    ) -> EngineCoreOutput:
        """What a later attempt says of its prefill and queue is no news to the front end."""
        if output.extra is None:
            reason = output.finish_reason
            return EngineCoreOutput(
                request_id=flight.request_id,
                new_token_ids=output.token_ids,
                finish_reason=None if reason is None else FinishReason(reason),
                stop_reason=output.stop_reason,
                prefill_stats=_prefill_stats(flight, output) if is_first else None,
                trace_headers=flight.trace_headers,
            )
        # Tensors are made over these bytes, and torch wants them writable.
        full: EngineCoreOutput = self._decoder.decode(bytearray(output.extra))
        full.request_id = flight.request_id
        full.trace_headers = flight.trace_headers
        if not is_first:
            full.prefill_stats = None
            full.events = [e for e in full.events or () if e.type is not EngineCoreEventType.QUEUED]
        for event in full.events or ():
            event.timestamp += shift_s
            if event.type is EngineCoreEventType.SCHEDULED and flight.exchange is not None:
                flight.exchange.note_scheduled(event.timestamp)
        return full


def _prefill_stats(flight: Flight, output: Output) -> PrefillStats | None:
    if output.cached_tokens is None:
        return None
    stats = PrefillStats()
    stats.set(
        num_prompt_tokens=len(flight.prompt_token_ids),
        num_local_cached_tokens=output.cached_tokens,
        num_external_cached_tokens=0,
    )
    return stats
