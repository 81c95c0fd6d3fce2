"""Flight: one request in flight, with everything needed to resume it on another engine."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.dispatch.suspicion import Suspicion
from qwenfleet.deployments.ingress.exchange import Exchange
from qwenfleet.deployments.telemetry.null_attempt import NO_ATTEMPT_SPAN
from qwenfleet.deployments.wire.frames import SHOWN_CHARS, Submit
from qwenfleet.deployments.wire.tokens import TokenIds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qwenfleet.deployments.telemetry.null_attempt import AnyAttemptSpan

_numbers: Final = itertools.count(1)
"""Numbers of the attempts of this process. Unlike numbers of a link, they also tell an attempt from
those on other links."""


Turn = tuple[int, bool, int]
"""Sort key of requests that wait."""


@dataclass(frozen=True)
class Cut:
    """The loss of a request's engine: why, which, and when."""

    loss: Loss
    engine: str
    reason: str
    at: float


@dataclass(eq=False)
class Flight:
    """A request in flight: the unchanged original, the engine that runs it and its output so
    far."""

    request_id: str
    prompt_token_ids: TokenIds
    payload: bytes
    """vLLM's encoded request, without its prompt."""
    max_tokens: int | None
    priority: int
    cache_salt: str | None
    exchange: Exchange | None
    token_ids: TokenIds = field(default_factory=TokenIds)
    has_output: bool = False
    number: int = 0
    """Order of arrival."""
    attempt: int = -1
    link: EngineLink | None = None
    """The engine that owns it; None while it waits for one."""
    refused_by: EngineLink | None = None
    """The last engine that refused it: any other one is preferred."""
    faults: int = 0
    """Engines in a row that failed to take it, since its last token."""
    key: int = 0
    """Number of the current attempt on the wire; 0 before the first."""
    cut: Cut | None = None
    """Why it moves; None again after the next token."""
    token_at: float | None = None
    gap_s: float | None = None
    """Seconds between its last two outputs with tokens; None at the first."""
    parked_at: float = 0.0
    """When it began to wait for an engine."""
    suspicion: Suspicion = field(default_factory=Suspicion)
    trace_headers: Mapping[str, str] | None = None
    """Trace context that vLLM's front end expects with each output, for its own span."""
    span: AnyAttemptSpan = NO_ATTEMPT_SPAN
    """Span of the current attempt."""

    @property
    def length_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.token_ids)

    @property
    def turn(self) -> Turn:
        """Sort key: interactive first (vLLM's priority: lower is earlier), then streams that a user
        is already reading, then order of arrival."""
        return (self.priority, not self.token_ids, self.number)

    def begin(self, link: EngineLink) -> None:
        """Begin the next attempt, on this engine."""
        self.attempt += 1
        self.suspicion.is_on_trial = False  # until this engine's Trying frame
        self.link = link
        self.key = next(_numbers)

    def submit(self, dp_rank: int) -> Submit:
        """The frame that gives the current attempt to its engine, with all tokens so far."""
        assert self.link is not None
        return Submit(
            number=self.key,
            request_id=self.request_id[:SHOWN_CHARS],
            attempt=self.attempt,
            prompt_token_ids=self.prompt_token_ids,
            request=self.payload,
            max_tokens=self.max_tokens,
            output_token_ids=self.token_ids,
            priority=self.priority,
            cache_salt=self.cache_salt,
            dp_rank=dp_rank,
            is_trial=self.suspicion.is_suspect,
            trace_headers=self.traced(self.link.engine),
        )

    def traced(self, engine: str) -> dict[str, str] | None:
        """Begin the span of the attempt at this engine; returns its trace context, None if the
        request is not traced."""
        if self.exchange is not None:
            self.exchange.note_attempt(engine, self.attempt)
            self.span = self.exchange.span.attempt(
                self.request_id, self.attempt, engine, len(self.token_ids), self.span
            )
        return self.span.headers
