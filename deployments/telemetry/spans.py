"""Spans: makes the spans of one process. `Tracing` exports them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind, Tracer
from starlette.types import Scope

from qwenfleet.deployments.telemetry.attempt_span import W3C, AttemptSpan
from qwenfleet.deployments.telemetry.null_attempt import NO_ATTEMPT_SPAN
from qwenfleet.deployments.telemetry.request_span import RequestSpan
from qwenfleet.deployments.wire.frames import Submit

if TYPE_CHECKING:
    from qwenfleet.deployments.telemetry.null_attempt import AnyAttemptSpan


class Spans:
    """Makes the spans of requests and of attempts in an engine."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def request(self, scope: Scope) -> RequestSpan:
        return RequestSpan(self._tracer, scope)

    def in_engine(self, submit: Submit, engine: str, model: str) -> AnyAttemptSpan:
        """Start the span of an attempt in its engine's host and put its context into `submit`. If
        the gateway does not trace it, return a NoAttemptSpan."""
        if submit.trace_headers is None:
            return NO_ATTEMPT_SPAN
        span = self._tracer.start_span(
            "engine",
            context=W3C.extract(submit.trace_headers),
            kind=SpanKind.SERVER,
            attributes={
                "qwenfleet.engine": engine,
                "qwenfleet.request": submit.request_id,
                "qwenfleet.attempt": submit.attempt,
                "qwenfleet.tokens_before": len(submit.output_token_ids),
                "qwenfleet.is_trial": submit.is_trial,
                "gen_ai.request.model": model,
                "gen_ai.usage.input_tokens": len(submit.prompt_token_ids),
            },
        )
        made = AttemptSpan(span, engine)
        submit.trace_headers = made.headers
        return made
