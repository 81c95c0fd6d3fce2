"""ModelClient: the `engine_core` of an otherwise unchanged AsyncLLM, over every engine of one
model.

AsyncLLM always sees one engine, index 0: an unknown index, or an exception from `get_output_async`,
would end every stream of its process (vLLM 0.32 async_llm.py, output_handler). So nothing here
raises toward the output handler, and a request that cannot continue fails through its exchange.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.ingress.errors import GatewayFailed, RequestError, TooManyRequests
from qwenfleet.deployments.ingress.exchange import Exchange, current_exchange
from qwenfleet.deployments.ingress.field_errors import OutOfBounds
from qwenfleet.deployments.vllm_adapter import codec
from qwenfleet.deployments.vllm_adapter.output_turns import OutputTurns, num_values
from qwenfleet.deployments.vllm_adapter.untracked import untrack
from qwenfleet.deployments.wire.frames import EngineDescription, Output
from qwenfleet.deployments.wire.tokens import TokenIds

logger = logging.getLogger(__name__)

MAX_WAITING_VALUES: Final = 2_000_000
"""Log probabilities that wait for a turn at one gateway: 150 MB, at 70 bytes each."""
RETRY_AFTER_S: Final = 5


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
        logprob_values: int = LimitsConfig().logprob_values,
    ) -> None:
        """Becomes the recipient of the dispatcher's outputs and errors. A request ends at
        `logprob_values` log probabilities."""
        self.engine_ranks_managed = [0]
        self.resources = _Resources()
        self.on_limit: Callable[[int], None] = lambda _: None
        """Called with the largest `max_model_len` that every connected engine can run, when it has
        changed."""
        self._clock = clock
        self._logprob_values = logprob_values
        self._exchanges: WeakValueDictionary[str, Exchange] = WeakValueDictionary()
        """By request id, until the exchange has ended: a request's last output may fail after its
        flight has landed."""
        self._outputs = OutputTurns()
        self._dispatcher = dispatcher
        dispatcher.attach(self)

    @property
    def description(self) -> EngineDescription | None:
        """Limits of the connected engines; None while there are none."""
        return self._dispatcher.description

    # What AsyncLLM calls.

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        exchange = current_exchange()
        if exchange is not None:
            self._exchanges[request.request_id] = exchange
            exchange.request_id = exchange.request_id or request.request_id
        prompt = request.prompt_token_ids or []
        untrack(prompt)
        params = request.sampling_params
        bare = copy.copy(request)  # the front end shares the original's lists
        bare.prompt_token_ids = None
        bare.trace_headers = None
        bare.request_id, bare.external_req_id = "", None  # the client's text, of any length
        self._dispatcher.add(
            Flight(
                request_id=request.request_id,
                prompt_token_ids=TokenIds(prompt),
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
        try:
            self._dispatcher.abort(request_ids)
        except Exception:  # the output handler calls this too
            logger.exception("failed to abort", extra={"requests": len(request_ids)})

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
                translated.append(self._convert(flight, output, is_first, shift_s, now))
            except RequestError as error:
                self._dispatcher.abort([flight.request_id])
                self.fail(flight, error)
            except Exception:  # one bad output must not end all other streams
                logger.exception("failed to decode output", extra={"request": flight.request_id})
                self._dispatcher.abort([flight.request_id])
                self.fail(flight, GatewayFailed())
        self._outputs.put(translated, now)

    def _convert(
        self, flight: Flight, output: Output, is_first: bool, shift_s: float, now: float
    ) -> EngineCoreOutput:
        full = codec.to_vllm(flight, output, is_first=is_first, shift_s=shift_s)
        if flight.exchange is not None:
            at = codec.scheduled_at(full)
            if at is not None:
                flight.exchange.note_scheduled(at)
            cached = (output.cached_tokens or 0) if is_first else 0
            flight.exchange.note_tokens(len(output.token_ids), cached, now, flight.gap_s)
            self._count_logprobs(flight.exchange, full)
        return full

    def _count_logprobs(self, exchange: Exchange, output: EngineCoreOutput) -> None:
        """Raise OutOfBounds beyond the request's limit, because vLLM keeps all of them to its end,
        and TooManyRequests if engines make more than this gateway can take."""
        values = num_values(output)
        if values and self._outputs.waiting_values + values > MAX_WAITING_VALUES:
            held = f"{self._outputs.waiting_values} log probabilities that wait to be sent"
            raise TooManyRequests(held, RETRY_AFTER_S)
        exchange.output_logprobs += values
        if exchange.output_logprobs > self._logprob_values:
            found, most = exchange.output_logprobs, self._logprob_values
            raise OutOfBounds("logprobs", found, most, "logprob_values", "values")

    def limit(self, max_model_len: int) -> None:
        self.on_limit(max_model_len)

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
        self._outputs.put([ended], self._clock())

    # What the output guard calls.

    def failed(self, request_id: str) -> None:
        """End a request whose output the front end cannot process."""
        exchange = self._exchanges.get(request_id)
        if exchange is not None:
            exchange.fail(GatewayFailed())
