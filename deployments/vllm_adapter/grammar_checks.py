"""GrammarChecks: whether a grammar may go to an engine, remembered by its hash.

A grammar that an engine cannot compile in time keeps a thread of its core busy for as long as it
takes, after its client has left too, and one that is slow to apply stops every stream of the engine
at each of its tokens. Both end in a process here instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

from qwenfleet.cluster.config.grammar import GrammarConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.ingress.errors import GatewayFailed
from qwenfleet.deployments.ingress.grammar_errors import (
    GrammarChecksBusy,
    GrammarInvalid,
    GrammarTooCostly,
)
from qwenfleet.deployments.vllm_adapter import grammar_size
from qwenfleet.deployments.vllm_adapter.grammar_compiler import Verdict
from qwenfleet.deployments.vllm_adapter.grammar_process import CompilerLost
from qwenfleet.deployments.vllm_adapter.grammar_size import Kind

logger = logging.getLogger(__name__)

REMEMBERED: Final = 4096
"""Grammars whose verdict is kept: 32 bytes each, and a sentence for those that are refused."""
QUICK_S: Final = 0.25
"""Every grammar is first tried for this long, so that those that need less do not wait for those
that need all of `compile_s`: 200 tools with six arguments take 0.1 s."""
MOST_WAITING: Final = 64
"""New grammars that wait at once."""
MOST_SLOW: Final = 8
"""Grammars that need more than QUICK_S and wait at once. They have one worker of their own, and so
take none of the others' places for long."""
RETRY_AFTER_S: Final = 5
TRIES: Final = 2
"""A process that ended, for lack of memory perhaps, is started again once for each grammar."""


class _Abandoned(Exception):
    """Nobody waits for this check any more."""


@dataclass
class _Check:
    """A check that runs or waits, and how many requests want its verdict."""

    task: asyncio.Task[FleetError | None] | None = None
    waiters: int = 0


class Process(Protocol):
    """What compiles: GrammarProcess, or a fake of the tests."""

    async def start(self) -> None: ...

    async def run(self, syntax: str, text: str, compile_s: float, memory_bytes: int) -> Verdict: ...

    def close(self) -> None: ...


class GrammarChecks:
    """The checks of one model's grammars at one gateway."""

    def __init__(self, limits: GrammarConfig, process: Process) -> None:
        self._limits = limits
        self._process = process
        self._verdicts: OrderedDict[bytes, FleetError | None] = OrderedDict()
        self._checks: dict[bytes, _Check] = {}
        self._num_slow = 0
        self._quick = asyncio.Semaphore(limits.workers)
        self._slow = asyncio.Semaphore(1)

    async def start(self) -> None:
        """Start the process before the first request needs it."""
        try:
            await self._process.start()
        except CompilerLost:
            logger.exception("failed to start the grammar compiler, trying again when needed")

    async def check(self, kind: Kind, syntax: str, text: str) -> None:
        """Raise GrammarRefused for a grammar that no engine may get, GrammarChecksBusy if too many
        wait, and GatewayFailed if it cannot be checked. Equal grammars are checked once."""
        key = hashlib.sha256(f"{syntax}\0{text}".encode("utf-8", "surrogatepass")).digest()
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            _raise(self._verdicts[key])
            return
        grammar_size.check(kind, text, self._limits)
        check = self._checks.get(key)
        if check is None or check.task is None:
            if len(self._checks) >= MOST_WAITING:
                raise GrammarChecksBusy(len(self._checks), RETRY_AFTER_S)
            check = self._checks[key] = _Check()
            check.task = asyncio.create_task(self._judge(key, check, kind, syntax, text))
        check.waiters += 1
        try:  # the client that asked first may leave before the others have their answer
            _raise(await asyncio.shield(check.task))
        finally:
            check.waiters -= 1

    def close(self) -> None:
        for check in self._checks.values():
            if check.task is not None:
                check.task.cancel()
        self._process.close()

    async def _judge(
        self, key: bytes, check: _Check, kind: Kind, syntax: str, text: str
    ) -> FleetError | None:
        try:
            refusal = await self._compile(check, kind, syntax, text)
        except _Abandoned:
            return None
        except GrammarChecksBusy as busy:
            return busy
        except CompilerLost:
            logger.exception("failed to check a grammar", extra={"kind": kind.value})
            return GatewayFailed()
        finally:
            del self._checks[key]
        self._verdicts[key] = refusal
        if len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)
        return refusal

    async def _compile(
        self, check: _Check, kind: Kind, syntax: str, text: str
    ) -> FleetError | None:
        quick_s = min(QUICK_S, self._limits.compile_s)
        async with self._quick:
            found = await self._run(check, syntax, text, quick_s)
        if found.end == "compile_s" and quick_s < self._limits.compile_s:
            found = await self._compile_slow(check, syntax, text)
        return refusal_of(kind, found, self._limits)

    async def _compile_slow(self, check: _Check, syntax: str, text: str) -> Verdict:
        if self._num_slow >= MOST_SLOW:
            raise GrammarChecksBusy(self._num_slow, RETRY_AFTER_S)
        self._num_slow += 1
        try:
            async with self._slow:
                return await self._run(check, syntax, text, self._limits.compile_s)
        finally:
            self._num_slow -= 1

    async def _run(self, check: _Check, syntax: str, text: str, compile_s: float) -> Verdict:
        if not check.waiters:
            raise _Abandoned
        for _ in range(TRIES - 1):
            try:
                return await self._try(syntax, text, compile_s)
            except CompilerLost as error:
                logger.warning("trying a grammar again", extra={"reason": str(error)})
        return await self._try(syntax, text, compile_s)

    async def _try(self, syntax: str, text: str, compile_s: float) -> Verdict:
        memory_bytes = self._limits.max_compiled_mib * 2**20
        found = await self._process.run(syntax, text, compile_s, memory_bytes)
        if found.end == "killed":
            raise CompilerLost("the kernel or a lack of CPU ended the compiler")
        return found


def refusal_of(kind: Kind, found: Verdict, limits: GrammarConfig) -> FleetError | None:
    """The error for the client; None for a grammar that may go to an engine. Pure."""
    match found.end:
        case "ok":
            return None
        case "compile_s":
            limit, setting = f"{limits.compile_s:g} s", "gateway.grammar.compile_s"
            return GrammarTooCostly(kind, "takes longer to compile", limit, setting)
        case "memory":
            limit, setting = f"{limits.max_compiled_mib} MiB", "gateway.grammar.max_compiled_mib"
            return GrammarTooCostly(kind, "takes more memory when compiled", limit, setting)
        case "steps":
            reason = (
                "each of its tokens takes an engine too long, because text can be read in many "
                "ways, as with (a+)+"
            )
        case "dead_end":
            reason = f"no token can follow after {found.detail} of them"
        case "crash":
            reason = f"it crashes the compiler ({found.detail or 'no signal'})"
        case _:
            reason = found.detail or "it does not compile"
    return GrammarInvalid(kind, reason)


def _raise(refusal: FleetError | None) -> None:
    if refusal is not None:
        raise type(refusal)(*refusal.args)  # a remembered one would collect its clients' stacks
