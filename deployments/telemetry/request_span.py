"""RequestSpan: one HTTP request at its gateway, the parent of its attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, StatusCode, Tracer, set_span_in_context
from starlette.types import Scope

from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.labels import Outcome
from qwenfleet.deployments.telemetry.attempt_span import W3C, AttemptSpan, headers_of
from qwenfleet.deployments.telemetry.null_attempt import NO_ATTEMPT_SPAN

if TYPE_CHECKING:
    from qwenfleet.deployments.telemetry.null_attempt import AnyAttemptSpan

_W3C_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
}
_FAILURES: Final = frozenset(
    {Outcome.FAILED, Outcome.TIMED_OUT, Outcome.UNAVAILABLE, Outcome.ENGINE_LOST}
)


class RequestSpan:
    """The span of one HTTP request at its gateway. As a context manager, it ends exactly once."""

    def __init__(self, tracer: Tracer, scope: Scope) -> None:
        path = scope["path"]
        self._tracer = tracer
        self._span = tracer.start_span(
            f"{scope['method']} {path}",
            context=W3C.extract(_carrier(scope["headers"])),  # a malformed one is ignored
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "http.route": path,
                "url.path": path,
                "url.scheme": scope.get("scheme", "http"),
            },
        )
        self._context = set_span_in_context(self._span, Context())
        self._outcome: Outcome | None = None
        if path in _OPERATIONS:
            self._span.set_attribute("gen_ai.operation.name", _OPERATIONS[path])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outcome is None:  # the caller was canceled, or the gateway failed
            is_canceled = isinstance(error, asyncio.CancelledError)
            self.answer(Outcome.DISCONNECTED if is_canceled else Outcome.FAILED, None)
        self._span.end()

    def carried_by(self, scope: Scope) -> Scope:
        """Return the request for the model's app, with our trace context in place of the
        client's."""
        ours = headers_of(self._span)
        kept = [pair for pair in scope["headers"] if pair[0] not in _W3C_HEADERS]
        added = [(name.encode(), value.encode("latin-1")) for name, value in ours.items()]
        return {**scope, "headers": [*kept, *added]}

    def select(self, model: str) -> None:
        """Record the model: one of the fleet's, never a client's text."""
        self._span.set_attribute("gen_ai.request.model", model)

    def attempt(
        self,
        request_id: str,
        number: int,
        engine: str,
        tokens_before: int,
        last: AnyAttemptSpan,
    ) -> AnyAttemptSpan:
        """Start the span of an attempt at an engine; `last` is the previous attempt. A request that
        is not sampled gets a NoAttemptSpan."""
        if not self._span.is_recording():
            return NO_ATTEMPT_SPAN
        attributes: dict[str, str | int] = {
            "qwenfleet.engine": engine,
            "qwenfleet.request": request_id,
            "qwenfleet.attempt": number,
            "qwenfleet.tokens_before": tokens_before,
        }
        links = []
        if isinstance(last, AttemptSpan):
            links = [Link(last.context, {"qwenfleet.loss": last.how})]
            attributes |= {"qwenfleet.moved_by": last.how, "qwenfleet.moved_from": last.engine}
        span = self._tracer.start_span(
            "attempt",
            context=self._context,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=links,
        )
        return AttemptSpan(span, engine)

    def fail(self, error: FleetError) -> None:
        """Record the error that the client gets, with its status if nothing was sent before."""
        self._span.set_attribute("error.type", error.code)
        self._span.set_attribute("http.response.status_code", error.status)
        if error.status >= 500:
            self._span.set_status(StatusCode.ERROR, error.code)

    def answer(
        self,
        outcome: Outcome,
        status: int | None,
        prompt: int = 0,
        cached: int = 0,
        output: int = 0,
    ) -> None:
        """Record the outcome; `status` is the one sent, the counts are tokens."""
        self._outcome = outcome
        self._span.set_attribute("qwenfleet.outcome", outcome.value)
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if prompt:
            self._span.set_attribute("gen_ai.usage.input_tokens", prompt)
            self._span.set_attribute("gen_ai.usage.output_tokens", output)
            self._span.set_attribute("gen_ai.usage.cache_read.input_tokens", cached)
        if outcome in _FAILURES:
            self._span.set_status(StatusCode.ERROR, outcome.value)


def _carrier(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    """Return a client's W3C headers. A tracestate may come in several headers; with two
    traceparents, all are ignored."""
    carrier: dict[str, list[str]] = {}
    for name, value in headers:
        if name in _W3C_HEADERS:
            carrier.setdefault(name.decode(), []).append(value.decode("latin-1"))
    if len(carrier.get("traceparent", ())) > 1:
        return {}
    return carrier
