"""AttemptSpan: one attempt at a request, as its gateway or its engine's host sees it.

OpenTelemetry's conventions name what they know, as plain text, because their package calls those
names unstable; `qwenfleet.` names the rest. No span holds a prompt, a completion or a key.
"""

from __future__ import annotations

import time
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from qwenfleet.cluster.labels import FinishReason, Loss

Headers = dict[str, str]
"""W3C trace context, as HTTP and the wire carry it."""

W3C: Final = TraceContextTextMapPropagator()
HARMLESS_ENDS: Final = frozenset({"aborted", "stopped", Loss.DRAINED})
"""Ends that nobody has to look into: it was not wanted any more, or it moved in good order."""
_FINISH_REASONS: Final = {reason.value: reason.name.lower() for reason in FinishReason}


def headers_of(span: Span) -> Headers:
    """What carries this span to where its children are made."""
    headers: Headers = {}
    W3C.inject(headers, set_span_in_context(span, Context()))
    return headers


class AttemptSpan:
    """One attempt, as its gateway or its engine sees it. Its first end counts."""

    def __init__(self, span: Span, engine: str) -> None:
        self.engine = engine
        self.how = ""
        """What ended it."""
        self._span = span
        self._tokens = 0

    @property
    def context(self) -> SpanContext:
        return self._span.get_span_context()

    @property
    def headers(self) -> Headers:
        return headers_of(self._span)

    def scheduled(self, ago_s: float) -> None:
        """The core took it out of its queue so long ago."""
        self._span.add_event("scheduled", timestamp=time.time_ns() - int(ago_s * 1e9))

    def took(self, tokens: int) -> None:
        if tokens and not self._tokens:
            self._span.add_event("first_token")
        self._tokens += tokens

    def resumed(self, gap_s: float) -> None:
        """Its first token came so long after the last one of the attempt before."""
        self._span.set_attribute("qwenfleet.gap_s", gap_s)

    def finish(self, reason: int) -> None:
        """The core ended it, for a reason that vLLM numbers."""
        name = _FINISH_REASONS.get(reason, str(reason))
        self._span.set_attribute("gen_ai.response.finish_reasons", (name,))
        self.end(name, is_error=reason == FinishReason.ERROR)

    def end(self, how: str, reason: str = "", *, is_error: bool | None = None) -> None:
        """It is over: `how` is of a closed set, `reason` says more."""
        if self.how:
            return
        self.how = how
        self._span.set_attribute("qwenfleet.end", how)
        self._span.set_attribute("gen_ai.usage.output_tokens", self._tokens)
        if how not in HARMLESS_ENDS if is_error is None else is_error:
            self._span.set_attribute("error.type", how)
            self._span.set_status(StatusCode.ERROR, reason or how)
        self._span.end()
