"""FleetClient: the `engine_core` of an otherwise unchanged AsyncLLM, over every engine of one
model.

AsyncLLM sees one engine, index 0, for ever: an index that it does not know, or an exception out of
`get_output_async`, ends every stream of its process (vLLM 0.32 async_llm.py, output_handler). So
nothing here raises towards the output handler, and a lost engine is told to the exchanges of its
requests instead.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, cast

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from qwenfleet.cluster.config import WireConfig
from qwenfleet.cluster.errors import EngineLost, FleetError, NoEngine
from qwenfleet.deployments.exchange import Exchange, current_exchange
from qwenfleet.deployments.link import EngineLink
from qwenfleet.deployments.registry import EngineRecord
from qwenfleet.deployments.routing import Target, choose
from qwenfleet.deployments.telemetry import GatewayMetrics
from qwenfleet.deployments.transport import (
    EngineDescription,
    Output,
    Outputs,
    Rejected,
    Submit,
    wire_id,
)

logger = logging.getLogger(__name__)

RECONNECT_S: Final = 0.5
"""Pause before an engine that refused or dropped us is tried again; the registry still lists it for
5 s."""


@dataclass
class Flight:
    """A request on its way: the untouched original, where it runs and what came back so far."""

    request: EngineCoreRequest
    attempt: int
    link: EngineLink
    exchange: Exchange | None
    token_ids: list[int] = field(default_factory=list)


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
        self._model = model
        self._gateway = gateway
        self._wire = wire
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._clock = clock
        self._rng = rng or random.Random()
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._links: dict[str, EngineLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._flights: dict[str, Flight] = {}
        self._wire_ids: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        self._encoder = MsgpackEncoder(size_threshold=1 << 40)  # no out-of-band buffers
        self._decoder = MsgpackDecoder(EngineCoreOutput)

    # The fleet.

    def update(self, records: Iterable[EngineRecord]) -> None:
        """Connect to the ready engines of this model that we do not know yet."""
        now = self._clock()
        for record in records:
            is_ours = record.model == self._model and record.state == "ready"
            if is_ours and record.id not in self._tasks and self._retry_at.get(record.id, 0) <= now:
                link = EngineLink(
                    record,
                    gateway=self._gateway,
                    wire=self._wire,
                    events=self,
                    clock=self._clock,
                )
                self._links[record.id] = link
                self._tasks[record.id] = asyncio.create_task(link.run())

    @property
    def description(self) -> EngineDescription | None:
        """What the engines of this model are; None until one was met."""
        for link in self._links.values():
            if link.description is not None:
                return link.description
        return None

    @property
    def has_engine(self) -> bool:
        """Whether a request could be sent now."""
        return any(link.is_open and not link.is_draining for link in self._links.values())

    def on_outputs(self, link: EngineLink, frame: Outputs) -> None:
        now = self._clock()
        outputs = []
        for output in frame.outputs:
            flight = self._flights.get(output.wire_id)
            if flight is None or flight.link is not link:
                continue  # aborted meanwhile, or an attempt that is no longer ours
            flight.token_ids += output.token_ids
            outputs.append(self._to_vllm(flight, output, shift_s=now - frame.clock_s))
            if flight.exchange is not None:
                flight.exchange.note_tokens(len(output.token_ids), output.cached_tokens or 0, now)
            if output.finish_reason is not None:
                self._drop(output.wire_id)
        if outputs:
            self._outputs.put_nowait(
                EngineCoreOutputs(engine_index=0, outputs=outputs, timestamp=now)
            )

    def on_rejected(self, link: EngineLink, frame: Rejected) -> None:
        flight = self._flights.get(frame.wire_id)
        if flight is not None and flight.link is link:
            self._fail(frame.wire_id, EngineLost(self._model, link.engine, frame.reason))

    def on_lost(self, link: EngineLink, reason: str) -> None:
        if self._links.get(link.engine) is link:
            del self._links[link.engine]
            self._tasks.pop(link.engine, None)
        now = self._clock()
        self._retry_at = {key: at for key, at in self._retry_at.items() if at > now}
        self._retry_at[link.engine] = now + RECONNECT_S
        lost = [key for key, flight in self._flights.items() if flight.link is link]
        if link.description is not None and (lost or not link.is_draining):
            self._metrics.engine_lost(self._model)
            logger.warning(
                "engine lost",
                extra={"engine": link.engine, "reason": reason, "requests": len(lost)},
            )
        for key in lost:
            self._fail(key, EngineLost(self._model, link.engine, reason))

    # What AsyncLLM calls.

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        exchange = current_exchange()
        target = choose(self._targets(), self._rng)
        if target is None:
            # Raising would leave the request in AsyncLLM's books; an abort takes it out of them.
            self._end(request, exchange, NoEngine(self._model, self._retry_after_s))
            return
        link = self._links[target.engine]
        key = wire_id(self._gateway, request.request_id, 0)
        self._flights[key] = Flight(request, 0, link, exchange)
        self._wire_ids[request.request_id] = key
        prompt = request.prompt_token_ids or []
        params = request.sampling_params
        bare = copy.copy(request)
        bare.prompt_token_ids = None
        link.submit(
            Submit(
                request_id=request.request_id,
                attempt=0,
                prompt_token_ids=prompt,
                request=cast(bytes, self._encoder.encode(bare)[0]),
                max_tokens=None if params is None else params.max_tokens,
                priority=request.priority,
                cache_salt=request.cache_salt,
                dp_rank=target.dp_rank,
            )
        )
        if exchange is not None:
            exchange.prompt_tokens += len(prompt)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        by_link: dict[EngineLink, list[str]] = {}
        for request_id in request_ids:
            key = self._wire_ids.get(request_id)
            if key is not None:
                by_link.setdefault(self._flights[key].link, []).append(key)
                self._drop(key)
        for link, keys in by_link.items():
            link.abort(keys)

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    def shutdown(self, timeout: float | None = None) -> None:
        for task in self._tasks.values():
            task.cancel()

    # One request.

    def _targets(self) -> list[Target]:
        return [
            target
            for link in self._links.values()
            if link.is_open and not link.is_draining
            for target in link.targets()
        ]

    def _to_vllm(self, flight: Flight, output: Output, shift_s: float) -> EngineCoreOutput:
        if output.extra is None:
            reason = output.finish_reason
            return EngineCoreOutput(
                request_id=flight.request.request_id,
                new_token_ids=output.token_ids,
                finish_reason=None if reason is None else FinishReason(reason),
                stop_reason=output.stop_reason,
                prefill_stats=_prefill_stats(flight, output),
            )
        full: EngineCoreOutput = self._decoder.decode(output.extra)
        full.request_id = flight.request.request_id
        for event in full.events or ():
            event.timestamp += shift_s
        return full

    def _drop(self, key: str) -> Flight | None:
        flight = self._flights.pop(key, None)
        if flight is not None:
            del self._wire_ids[flight.request.request_id]
        return flight

    def _fail(self, key: str, error: FleetError) -> None:
        flight = self._drop(key)
        if flight is not None:
            self._end(flight.request, flight.exchange, error)

    def _end(
        self, request: EngineCoreRequest, exchange: Exchange | None, error: FleetError
    ) -> None:
        """End a request with an error; one outside any exchange ends as vLLM ends its own."""
        if exchange is not None:
            exchange.fail(error)
            return
        ended = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=FinishReason.ERROR,
        )
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[ended], timestamp=self._clock()))


def _prefill_stats(flight: Flight, output: Output) -> PrefillStats | None:
    if output.cached_tokens is None:
        return None
    stats = PrefillStats()
    stats.set(
        num_prompt_tokens=len(flight.request.prompt_token_ids or ()),
        num_local_cached_tokens=output.cached_tokens,
        num_external_cached_tokens=0,
    )
    return stats
