"""AttemptSpan: one attempt at a request, as its gateway or its engine's host sees it.

Attribute names follow OpenTelemetry's conventions where they exist, as plain text because their
package calls those names unstable; the others begin with `qwenfleet.`. Spans never hold a prompt, a
completion or a key.
"""

from __future__ import annotations

import time
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from qwenfleet.cluster.labels import FinishReason, Loss

Headers = dict[str, str]
"""W3C trace context, as sent over HTTP and the wire."""

W3C: Final = TraceContextTextMapPropagator()
HARMLESS_ENDS: Final = frozenset({"aborted", "stopped", Loss.DRAINED})
"""Ends that are not errors: the client canceled the request, or it moved in an orderly drain."""
_FINISH_REASONS: Final = {reason.value: reason.name.lower() for reason in FinishReason}


def headers_of(span: Span) -> Headers:
    """Return the headers that make this span the parent of spans in another process."""
    headers: Headers = {}
    W3C.inject(headers, set_span_in_context(span, Context()))
    return headers


class AttemptSpan:
    """One attempt, as its gateway or its engine sees it. Only the first end counts."""

    def __init__(self, span: Span, engine: str) -> None:
        self.engine = engine
        self.how = ""
        """How it ended."""
        self._span = span
        self._tokens = 0

    @property
    def context(self) -> SpanContext:
        return self._span.get_span_context()

    @property
    def headers(self) -> Headers:
        return headers_of(self._span)

    def scheduled(self, ago_s: float) -> None:
        """Note that the core took it out of its queue `ago_s` seconds ago."""
        self._span.add_event("scheduled", timestamp=time.time_ns() - int(ago_s * 1e9))

    def took(self, tokens: int) -> None:
        if tokens and not self._tokens:
            self._span.add_event("first_token")
        self._tokens += tokens

    def resumed(self, gap_s: float) -> None:
        """Note that its first token came `gap_s` seconds after the previous attempt's last one."""
        self._span.set_attribute("qwenfleet.gap_s", gap_s)

    def finish(self, reason: int) -> None:
        """End it as the core did; `reason` is vLLM's number."""
        name = _FINISH_REASONS.get(reason, str(reason))
        self._span.set_attribute("gen_ai.response.finish_reasons", (name,))
        self.end(name, is_error=reason == FinishReason.ERROR)

    def end(self, how: str, reason: str = "", *, is_error: bool | None = None) -> None:
        """End the span: `how` is one of a closed set, `reason` gives details."""
        if self.how:
            return
        self.how = how
        self._span.set_attribute("qwenfleet.end", how)
        self._span.set_attribute("gen_ai.usage.output_tokens", self._tokens)
        if how not in HARMLESS_ENDS if is_error is None else is_error:
            self._span.set_attribute("error.type", how)
            self._span.set_status(StatusCode.ERROR, reason or how)
        self._span.end()
