"""Tracing: sends the spans of this process to an OpenTelemetry collector, by OTLP over HTTP.

Imported only if `tracing` is configured. OpenTelemetry's thread sends batches from a bounded queue:
an unreachable collector loses spans, never requests.
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
"""Limit for one batch, including retries."""
CLOSE_S: Final = 2.0
"""How long a process that ends waits to send its last spans."""


class Tracing:
    """Provides this process's spans, including vLLM's."""

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
            shutdown_on_exit=False,  # it would wait half a minute
        )
        exporter = OTLPSpanExporter(endpoint=config.traces_url, timeout=EXPORT_TIMEOUT_S)
        logged = OutageLogger(exporter, config.traces_url)
        self._provider.add_span_processor(BatchSpanProcessor(logged))
        self.spans = Spans(self._provider.get_tracer("qwenfleet", version.own_version()))
        trace.set_tracer_provider(self._provider)  # vLLM's own spans use it

    def close(self) -> None:
        """Send the remaining spans, for at most `CLOSE_S` seconds. Blocks."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(CLOSE_S)


class OutageLogger(SpanExporter):
    """Logs once that export fails, and once that it works again."""

    def __init__(self, exporter: SpanExporter, url: str) -> None:
        self._exporter = exporter
        self._url = url
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                logger.warning("trace export failed", extra={"collector": self._url})
            self._lost += len(spans)
        elif self._lost:
            logger.info("trace export recovered", extra={"lost_spans": self._lost})
            self._lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def quiet_opentelemetry() -> None:
    """Silence OpenTelemetry's loggers: they write several lines per failed batch, and one per
    malformed client header, with its text."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
