"""Chooses a process's tracing: `tracing_of` returns the real one or a null object.

The `No…` classes have the same methods without effect, and do not import OpenTelemetry. So the
code that handles requests needs no branch for tracing.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from starlette.types import Scope

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.labels import Outcome
from qwenfleet.deployments.telemetry.null_attempt import NO_ATTEMPT_SPAN, NoAttemptSpan
from qwenfleet.deployments.wire.frames import Submit

if TYPE_CHECKING:
    from qwenfleet.deployments.telemetry.exporter import Tracing
    from qwenfleet.deployments.telemetry.null_attempt import AnyAttemptSpan
    from qwenfleet.deployments.telemetry.request_span import RequestSpan
    from qwenfleet.deployments.telemetry.spans import Spans

    AnyRequestSpan: TypeAlias = "RequestSpan | NoRequestSpan"
    AnySpans: TypeAlias = "Spans | NoSpans"
    AnyTracing: TypeAlias = "Tracing | NoTracing"


class NoRequestSpan:
    """Null RequestSpan, for a process without tracing."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def carried_by(self, scope: Scope) -> Scope:
        return scope

    def select(self, model: str) -> None:
        pass

    def attempt(
        self, request_id: str, number: int, engine: str, tokens_before: int, last: AnyAttemptSpan
    ) -> NoAttemptSpan:
        return NO_ATTEMPT_SPAN

    def fail(self, error: FleetError) -> None:
        pass

    def answer(
        self,
        outcome: Outcome,
        status: int | None,
        prompt: int = 0,
        cached: int = 0,
        output: int = 0,
    ) -> None:
        pass


class NoSpans:
    """Null Spans, for a process without tracing."""

    __slots__ = ()

    def request(self, scope: Scope) -> NoRequestSpan:
        return NO_REQUEST_SPAN

    def in_engine(self, submit: Submit, engine: str, model: str) -> NoAttemptSpan:
        return NO_ATTEMPT_SPAN


class NoTracing:
    """Null Tracing, for a process without tracing."""

    def __init__(self) -> None:
        self.spans = NO_SPANS

    def close(self) -> None:
        pass


NO_REQUEST_SPAN: Final = NoRequestSpan()
NO_SPANS: Final = NoSpans()


def tracing_of(fleet: FleetConfig, *, service: str, instance: str) -> AnyTracing:
    """Return this process's tracing. OpenTelemetry is imported only if it is configured."""
    if fleet.tracing is None:
        return NoTracing()
    from qwenfleet.deployments.telemetry.exporter import Tracing

    return Tracing(fleet.tracing, fleet=fleet.name, service=service, instance=instance)
