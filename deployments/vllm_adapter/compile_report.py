"""CompileReport: what a core's processes last reported of the grammars that they compile.

vLLM internals used here (0.32): AsyncMPClient.call_utility_all_async, and what grammar_plugin.py
adds to EngineCore.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from qwenfleet.deployments.engine_host.compile_watch import Compiles
from qwenfleet.deployments.vllm_adapter.compile_pool import PoolState
from qwenfleet.deployments.vllm_adapter.grammar_plugin import UTILITY

logger = logging.getLogger(__name__)


class Client(Protocol):
    """The part of AsyncMPClient that asks every rank of an engine."""

    async def call_utility_all_async(self, method: str) -> list[Any]: ...


class CompileReport:
    """Asks only while a grammar may be compiling: a core answers between two steps."""

    def __init__(self) -> None:
        self._last = Compiles()
        self._is_expected = False
        self._asking: asyncio.Task[None] | None = None

    def expect(self) -> None:
        """Note that the core got a request with a grammar."""
        self._is_expected = True

    def look(self, client: Client) -> Compiles:
        """Return the last report and ask for the next one. A core that is frozen never answers, and
        is not asked again."""
        if self._is_expected and (self._asking is None or self._asking.done()):
            self._is_expected = False
            self._asking = asyncio.create_task(self._ask(client))
        return self._last

    async def _ask(self, client: Client) -> None:
        try:
            found = await client.call_utility_all_async(UTILITY)
            self._last = combined([PoolState(*state) for state in found if state])
        except Exception as error:  # a dead core is reported elsewhere
            logger.info("failed to ask for grammars", extra={"reason": str(error)})
            return
        if self._last.oldest_s or self._last.stuck:
            self._is_expected = True


def combined(states: list[PoolState]) -> Compiles:
    """The grammars of all ranks. Pure."""
    return Compiles(
        oldest_s=max((state.oldest_s for state in states), default=0.0),
        stuck=sum(int(state.stuck) for state in states),
        done=sum(int(state.done) for state in states),
        longest_s=max((state.longest_s for state in states), default=0.0),
    )
