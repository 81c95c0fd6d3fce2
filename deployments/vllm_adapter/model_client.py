"""ModelClient: the `engine_core` of an otherwise unchanged AsyncLLM, over every engine of one
model.

AsyncLLM always sees one engine, index 0: an unknown index, or an exception from `get_output_async`,
would end every stream of its process (vLLM 0.32 async_llm.py, output_handler). So nothing here
raises toward the output handler, and a request that cannot continue fails through its exchange.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vllm.sampling_params import SamplingParams, SamplingType
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)

from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.ingress.errors import GatewayFailed
from qwenfleet.deployments.ingress.exchange import current_exchange
from qwenfleet.deployments.vllm_adapter import codec
from qwenfleet.deployments.wire.frames import Output

logger = logging.getLogger(__name__)

SEED_BITS: Final = 63
"""vLLM's seeds are signed 64-bit integers."""


@dataclass
class _Resources:
    """The field that AsyncLLM reads to see whether its engine is alive: the fleet always is."""

    engine_dead: bool = False


class ModelClient:
    """Implements the part of vLLM's EngineCoreClient that AsyncLLM calls for text generation."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """Becomes the recipient of the dispatcher's outputs and errors."""
        self.engine_ranks_managed = [0]
        self.resources = _Resources()
        self._clock = clock
        self._rng = rng or random.Random()
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._dispatcher = dispatcher
        dispatcher.attach(self)

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
                payload=codec.encode_request(bare),
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

    def deliver(
        self, outputs: list[tuple[Flight, Output, bool]], shift_s: float, now: float
    ) -> None:
        translated = []
        for flight, output, is_first in outputs:
            try:
                full = codec.to_vllm(flight, output, is_first=is_first, shift_s=shift_s)
            except Exception:  # one bad output must not end all other streams
                logger.exception("failed to decode output", extra={"request": flight.request_id})
                self._dispatcher.abort([flight.request_id])
                self.fail(flight, GatewayFailed())
                continue
            translated.append(full)
            if flight.exchange is not None:
                at = codec.scheduled_at(full)
                if at is not None:
                    flight.exchange.note_scheduled(at)
                cached = (output.cached_tokens or 0) if is_first else 0
                flight.exchange.note_tokens(len(output.token_ids), cached, now, flight.gap_s)
        self._outputs.put_nowait(
            EngineCoreOutputs(engine_index=0, outputs=translated, timestamp=now)
        )

    def fail(self, flight: Flight, error: FleetError) -> None:
        """End a request with an error, through its exchange; without one, as vLLM ends its own."""
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
        """Give a request that samples a seed, so that another engine draws the same tokens."""
        if params is None or params.sampling_type is not SamplingType.RANDOM:
            return params
        seeded = copy.copy(params)
        seeded.__dict__.pop("sampling_type", None)
        seeded.seed = self._rng.getrandbits(SEED_BITS)
        return seeded
