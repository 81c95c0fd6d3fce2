"""What an engine host drives: the seam between the wire and an engine core, vLLM's or the scripted
one."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from qwenfleet.deployments.wire.frames import EngineDescription, Output, RankLoad, Submit


class CoreDead(Exception):
    """The core will never answer again; its host ends itself."""


class CoreFrozen(CoreDead):
    """The core lives and makes no progress; its host ends itself, and the core with it."""


class CoreStep(NamedTuple):
    """One iteration of the core: new tokens, and what its scheduler holds after it."""

    outputs: list[Output]
    load: list[RankLoad]
    scheduled: list[tuple[str, float]] | None = None
    """Wire ids that left the core's queue, and when by the monotonic clock; told to traces only."""


class Core(Protocol):
    """Runs attempts by wire id. No method may be called before `start` returned."""

    async def start(self) -> EngineDescription:
        """Load and warm up: returns after a completion with sampling and logprobs. Raises
        EngineStartError."""
        ...

    async def add(self, wire_id: str, submit: Submit) -> None:
        """Take an attempt, to go on behind its `output_token_ids`. Raises ValueError, with a
        sentence, for one that it cannot run, and CoreDead."""
        ...

    async def abort(self, wire_ids: list[str]) -> None:
        """Stop these attempts; ids that already ended are ignored."""
        ...

    async def next_step(self) -> CoreStep:
        """Wait for the next iteration. Raises CoreDead."""
        ...

    async def probe(self) -> None:
        """Ask a core that seems frozen for a step of its own, which is the sign that it is back."""
        ...

    def cpu_s(self) -> float | None:
        """CPU seconds that the core's own processes have used; None when it has none."""
        ...

    def shutdown(self) -> None: ...
