"""Served: one model at one gateway, and whether its requests can be answered now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from starlette.types import ASGIApp

from qwenfleet.cluster.config.fleet import GatewayConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.ingress.errors import ModelBroken, ModelLoading, NoEngine
from qwenfleet.deployments.wire.frames import EngineDescription

START_FLOOR_S: Final = 30.0
"""Shortest wait for an engine: Serve notices a lost one, places the next, and imports vLLM."""
START_FACTOR: Final = 1.5
"""A start may take half as long again as the longest one so far, on a busier machine."""
UNKNOWN_START_S: Final = 300.0
"""Wait for an engine while this gateway knows the length of no start."""


class Engines(Protocol):
    """The engines of one model that this gateway knows."""

    @property
    def description(self) -> EngineDescription | None:
        """Their description; None until the first connection."""
        ...

    @property
    def num_engines(self) -> int:
        """Engines that make progress and take new requests now."""
        ...

    @property
    def num_moving(self) -> int:
        """Requests that wait for an engine, or to move to another one."""
        ...

    def end_waiting(self) -> None:
        """End with NoEngine every request on which no engine works."""
        ...


class Served:
    """One model in this gateway, from configuration to app."""

    def __init__(
        self,
        config: ModelConfig,
        gateway: GatewayConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.engines: Engines | None = None
        """None until the gateway has imported vLLM."""
        self.app: ASGIApp | None = None
        """vLLM's app; None until the first engine is connected."""
        self.default_parameters: dict[str, Any] = config.sampling.model_dump(exclude_none=True)
        """Parameters of a chat that sets none; from the app on, with those of the model's files."""
        self.ongoing = 0
        """Requests in progress."""
        self.has_ready_engine = False
        """Whether the registry lists a ready engine."""
        self.longest_start_s = 0.0
        """The longest start of an engine that this gateway has seen; 0 if none."""
        self.is_broken = False
        """Whether building its app failed; it is not tried again."""
        self._gateway = gateway
        self._clock = clock
        self._decided = asyncio.Event()
        """Set once requests need not be held any more: the model has been ready, or is broken."""
        self._usable_at = clock()

    @property
    def context_tokens(self) -> int | None:
        """Prompt and output that its engines take, in tokens; None until one is connected."""
        description = None if self.engines is None else self.engines.description
        return None if description is None else description.max_model_len

    @property
    def is_ready(self) -> bool:
        return self.app is not None and self.num_engines > 0

    @property
    def is_decided(self) -> bool:
        """Whether requests need not be held: the model has been ready, or is broken."""
        return self._decided.is_set()

    @property
    def has_been_ready(self) -> bool:
        return self.app is not None and self._decided.is_set()

    @property
    def num_engines(self) -> int:
        """Engines that make progress and take new requests now."""
        return 0 if self.engines is None else self.engines.num_engines

    @property
    def patience_s(self) -> float:
        """How long requests wait for an engine: longer than one takes to start."""
        if self._gateway.no_engine_s is not None:
            return self._gateway.no_engine_s
        if not self.longest_start_s:
            return UNKNOWN_START_S
        return max(START_FLOOR_S, START_FACTOR * self.longest_start_s)

    @property
    def is_blocked(self) -> bool:
        """Whether no engine has been usable for longer than one takes to start."""
        return self.has_been_ready and self._clock() - self._usable_at > self.patience_s

    def note_listing(self, has_ready_engine: bool, longest_start_s: float) -> None:
        """Note what the registry lists. A new ready engine gets time to be connected."""
        if has_ready_engine and not self.has_ready_engine:
            self._usable_at = self._clock()
        self.has_ready_engine = has_ready_engine
        self.longest_start_s = max(self.longest_start_s, longest_start_s)

    def look(self) -> None:
        """Note whether an engine is usable; end requests that have waited too long. Called once or
        twice a second."""
        if self.is_broken or self.is_ready:
            self._decided.set()
        if self.is_ready:
            self._usable_at = self._clock()
        elif self.is_blocked and self.engines is not None:
            self.engines.end_waiting()

    def holds(self, *, needs_engine: bool) -> bool:
        """Whether a request that comes now is held: a ready engine is being connected."""
        if self.app is not None and not needs_engine:
            return False
        self.look()
        return self.has_ready_engine and not self._decided.is_set()

    async def admit_later(self, timeout_s: float, *, needs_engine: bool) -> ASGIApp:
        """Return the app for a request that is held. Raises Unavailable."""
        try:
            async with asyncio.timeout(min(timeout_s, self.patience_s)):
                await self._decided.wait()
        except TimeoutError:
            raise self._error(NoEngine) from None
        return self.admit(needs_engine=needs_engine)

    def admit(self, *, needs_engine: bool) -> ASGIApp:
        """Return the app for a request. Raises Unavailable."""
        if self.app is not None and not needs_engine:
            return self.app
        if self.is_broken:
            raise self._error(ModelBroken)
        if self.app is None or not self.has_been_ready:
            raise self._error(ModelLoading)
        if self.is_blocked:
            raise self._error(NoEngine)
        return self.app

    def _error(
        self, kind: type[ModelLoading] | type[ModelBroken] | type[NoEngine]
    ) -> ModelLoading | ModelBroken | NoEngine:
        return kind(self.config.id, self._gateway.retry_after_s)
