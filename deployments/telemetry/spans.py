"""Spans: makes the spans of one process. `Tracing` says where they go."""

from __future__ import annotations

from opentelemetry.trace import SpanKind, Tracer
from starlette.types import Scope

from qwenfleet.deployments.telemetry.attempt_span import W3C, AttemptSpan
from qwenfleet.deployments.telemetry.request_span import RequestSpan
from qwenfleet.deployments.wire.frames import Submit


class Spans:
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def request(self, scope: Scope) -> RequestSpan:
        return RequestSpan(self._tracer, scope)

    def in_engine(self, submit: Submit, engine: str, model: str) -> AttemptSpan | None:
        """One attempt in its engine's host; None when its gateway does not trace it. From here on
        it carries the context of this span."""
        if submit.trace_headers is None:
            return None
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
