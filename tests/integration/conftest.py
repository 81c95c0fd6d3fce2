"""One real fleet for all integration tests: Ray, HAProxy, two gateways, vLLM engines on CPU.

It traces the requests whose client says so, and no others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

FLEET = """
name: integration
models:
  - id: smollm2
    source: smollm2-135m-instruct
    replicas: {min: 1}
  - id: tiny
    source: tiny-qwen3-moe
    replicas: {min: 2}
    max_model_len: 2048
    engine_args: {dtype: float32}
  - id: scripted
    source: tiny-qwen3-moe
    engine: scripted
    max_model_len: 4096
    replicas: {min: 2}
    script: {num_tokens: 3000, step_s: 0.02, tokens: [104, 105, 32]}
gateway: {replicas: 2, port: {port}, max_body_bytes: 1000000, keep_alive_s: 1}
tracing: {endpoint: "http://127.0.0.1:{collector}", sample_ratio: 0}
"""
PATIENCE_S = 30.0
"""Spans are sent every five seconds, from a machine that may be busy."""


@dataclass(frozen=True)
class Span:
    """One span as a collector gets it."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: dict[str, Any]
    events: list[str]
    links: list[str]


@dataclass
class Collector:
    """Takes OTLP over HTTP, as an OpenTelemetry collector does."""

    port: int = 0
    spans: list[Span] = field(default_factory=list)
    has_news: threading.Condition = field(default_factory=threading.Condition)

    def take(self, body: bytes) -> None:
        with self.has_news:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = _plain(resource.resource.attributes)["service.name"]
                self.spans += [
                    Span(
                        service=service,
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        start_ns=span.start_time_unix_nano,
                        end_ns=span.end_time_unix_nano,
                        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
                        attributes=_plain(span.attributes),
                        events=[event.name for event in span.events],
                        links=[link.span_id.hex() for link in span.links],
                    )
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
            self.has_news.notify_all()

    def trace(self, trace_id: str, *names: str) -> list[Span]:
        """The spans of a trace in order of their start, once those named have come."""
        give_up_at = time.monotonic() + PATIENCE_S
        with self.has_news:
            while True:
                found = [span for span in self.spans if span.trace_id == trace_id]
                found.sort(key=lambda span: span.start_ns)
                missing = list(names)
                for span in found:
                    if span.name in missing:
                        missing.remove(span.name)
                if not missing:
                    return found
                left_s = give_up_at - time.monotonic()
                assert left_s > 0, f"{missing} did not come; there are {found}"
                self.has_news.wait(left_s)


def _plain(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


@pytest.fixture(scope="session")
def collector() -> Iterator[Any]:
    taken = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                taken.take(body)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    taken.port = server.server_address[1]
    yield taken
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def fleet(
    run_fleet: Any, collector: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    text = FLEET.replace("{collector}", str(collector.port))
    with run_fleet(text, 5, tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet
