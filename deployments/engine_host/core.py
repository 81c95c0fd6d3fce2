"""Core: the interface between an engine host and its engine core, vLLM's or the scripted one."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from qwenfleet.deployments.engine_host.compile_watch import Compiles
from qwenfleet.deployments.wire.frames import EngineDescription, Output, RankLoad, Submit


class CoreDead(Exception):
    """The core has died; its host ends."""


class CoreFrozen(CoreDead):
    """The core is alive but makes no progress; its host ends and kills it."""


class CoreStep(NamedTuple):
    """One iteration of the core: new tokens, and the scheduler's load after it."""

    outputs: list[Output[str]]
    load: list[RankLoad]
    scheduled: list[tuple[str, float]] | None = None
    """Wire ids that left the core's queue, with the monotonic time; used for traces only."""


class Core(Protocol):
    """Runs attempts by wire id. Call no other method before `start` has returned."""

    draft: EngineDescription | None
    """What is known of its description while it starts; gateways build their apps with it."""

    async def start(self) -> EngineDescription:
        """Load and warm up; returns after a completion with sampling and logprobs. Raises
        EngineStartError."""
        ...

    async def add(self, wire_id: str, submit: Submit) -> None:
        """Take an attempt and continue after its `output_token_ids`. Raises ValueError, with a
        sentence for the client, for an attempt that it cannot run, and CoreDead."""
        ...

    async def abort(self, wire_ids: list[str]) -> None:
        """Stop these attempts; ids of ended attempts are ignored."""
        ...

    async def next_step(self) -> CoreStep:
        """Wait for the next iteration. Raises CoreDead."""
        ...

    async def probe(self) -> None:
        """Ask a core that seems frozen for one step, which shows that it has recovered."""
        ...

    def cpu_s(self) -> float | None:
        """CPU seconds used so far by the core's processes; None if it has none."""
        ...

    def compiles(self) -> Compiles:
        """The grammars that the core compiles, as it last reported them. Never waits."""
        ...

    def shutdown(self) -> None: ...
