"""Tracing: from the spans of this process to an OpenTelemetry collector, over OTLP and HTTP.

Imported only when `tracing` is configured. A thread of OpenTelemetry's sends in batches from a
bounded queue: a collector that is away costs spans, never a request.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from qwenfleet.cluster.config.fleet import TracingConfig
from qwenfleet.cluster.local import version
from qwenfleet.deployments.telemetry.spans import Spans

logger = logging.getLogger(__name__)

EXPORT_TIMEOUT_S: Final = 5.0
"""For one batch, with all its retries."""
CLOSE_S: Final = 2.0
"""A process that ends waits this long for its last spans to leave."""


class Tracing:
    """The provider of this process's spans, vLLM's among them."""

    def __init__(self, config: TracingConfig, *, fleet: str, service: str, instance: str) -> None:
        quiet_opentelemetry()
        resource = Resource.create(
            {
                "service.name": service,
                "service.namespace": fleet,
                "service.instance.id": instance,
                "service.version": version.own_version(),
            }
        )
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(config.sample_ratio),
            resource=resource,
            shutdown_on_exit=False,  # that waits for half a minute
        )
        exporter = OTLPSpanExporter(endpoint=config.traces_url, timeout=EXPORT_TIMEOUT_S)
        told = OutageTeller(exporter, config.traces_url)
        self._provider.add_span_processor(BatchSpanProcessor(told))
        self.spans = Spans(self._provider.get_tracer("qwenfleet", version.own_version()))
        trace.set_tracer_provider(self._provider)  # vLLM's own spans go to whatever stands there

    def close(self) -> None:
        """Send what is left, in `CLOSE_S` seconds at most. Blocks."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(CLOSE_S)


class OutageTeller(SpanExporter):
    """Says once that spans do not arrive, and once that they do again."""

    def __init__(self, exporter: SpanExporter, url: str) -> None:
        self._exporter = exporter
        self._url = url
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                logger.warning("traces not delivered", extra={"collector": self._url})
            self._lost += len(spans)
        elif self._lost:
            logger.info("traces delivered again", extra={"lost_spans": self._lost})
            self._lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def quiet_opentelemetry() -> None:
    """Its loggers say several lines for each batch that fails, and one for each odd header of a
    client's, with its text."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
