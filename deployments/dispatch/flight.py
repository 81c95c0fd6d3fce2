"""Flight: one request on its way, with all that it needs to go on at another engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.dispatch.suspicion import Suspicion
from qwenfleet.deployments.ingress.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qwenfleet.deployments.telemetry.attempt_span import AttemptSpan


@dataclass(frozen=True)
class Cut:
    """A request left its engine: why, which, and when."""

    loss: Loss
    engine: str
    reason: str
    at: float


@dataclass(eq=False)
class Flight:
    """A request on its way: the untouched original, where it runs and what came back so far."""

    request_id: str
    prompt_token_ids: list[int]
    payload: bytes
    """vLLM's request without its prompt, as bytes."""
    max_tokens: int | None
    priority: int
    cache_salt: str | None
    exchange: Exchange | None
    token_ids: list[int] = field(default_factory=list)
    has_output: bool = False
    number: int = 0
    """Order of arrival."""
    attempt: int = -1
    link: EngineLink | None = None
    """Its owner; None while it waits for one."""
    refused_by: EngineLink | None = None
    """The last engine that would not run it: any other one is better."""
    key: str = ""
    """The wire id of its attempt."""
    cut: Cut | None = None
    """Why it moves, until the next token."""
    token_at: float | None = None
    gap_s: float | None = None
    """Between its last two outputs with tokens; None at the first."""
    parked_at: float = 0.0
    """Since when it has had no engine."""
    suspicion: Suspicion = field(default_factory=Suspicion)
    trace_headers: Mapping[str, str] | None = None
    """What vLLM's front end wants back with each output, to put its own span into the trace."""
    span: AttemptSpan | None = None
    """Of its attempt; None when the request is not traced."""

    @property
    def length_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.token_ids)

    @property
    def turn(self) -> tuple[int, bool, int]:
        """Interactive first (vLLM's priority: lower is earlier), then streams that a user is
        reading, then by arrival."""
        return (self.priority, not self.token_ids, self.number)

    def traced(self, engine: str) -> dict[str, str] | None:
        """The trace context of its attempt at this engine, whose span begins now; None when the
        request is not traced."""
        request = None if self.exchange is None else self.exchange.span
        if request is None:
            return None
        self.span = request.attempt(
            self.request_id, self.attempt, engine, len(self.token_ids), self.span
        )
        return None if self.span is None else self.span.headers
