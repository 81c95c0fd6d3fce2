"""Tests trace export; an unreachable or hanging collector costs one log line."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from qwenfleet.cluster.config.fleet import FleetConfig, TracingConfig
from qwenfleet.deployments.telemetry import exporter as module
from qwenfleet.deployments.telemetry.exporter import OutageLogger, Tracing
from qwenfleet.deployments.telemetry.tracing import NO_SPANS, tracing_of

ROOT = Path(__file__).resolve().parents[4]
SCOPE = {"method": "POST", "path": "/v1/completions", "headers": []}
OURS = {"attempt_span", "exporter", "request_span", "spans"}
"""Modules that may import OpenTelemetry."""


@pytest.fixture
def collector() -> Iterator[Any]:
    taken: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", taken
    server.shutdown()
    thread.join()
    server.server_close()


def tracing_to(endpoint: str) -> Tracing:
    fleet = FleetConfig(name="coders", tracing=TracingConfig(endpoint=endpoint))
    made = tracing_of(fleet, service="qwenfleet-gateway", instance="gw-1")
    assert isinstance(made, Tracing)
    return made


def make_spans(tracing: Tracing, count: int) -> None:
    for _ in range(count):
        with tracing.spans.request(SCOPE):
            pass


def test_remaining_spans_are_sent_when_the_process_ends(collector: Any) -> None:
    endpoint, taken = collector
    tracing = tracing_to(endpoint)
    make_spans(tracing, 3)
    tracing.close()
    ((path, request),) = taken
    assert path == "/v1/traces"
    (resource,) = request.resource_spans
    attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert (
        attributes.items()
        >= {
            "service.name": "qwenfleet-gateway",
            "service.namespace": "coders",
            "service.instance.id": "gw-1",
        }.items()
    )
    assert len(resource.scope_spans[0].spans) == 3


def test_unreachable_or_hanging_collector_does_not_delay_the_exit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.3)
    monkeypatch.setattr(module, "EXPORT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        tracing = tracing_to(f"http://127.0.0.1:{hanging.getsockname()[1]}")
        started_at = time.monotonic()
        make_spans(tracing, 3000)  # more than the queue holds
        made_s = time.monotonic() - started_at
        tracing.close()
        closed_s = time.monotonic() - started_at - made_s
    assert made_s < 5
    assert closed_s < 1
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


class Flaky(SpanExporter):
    def __init__(self) -> None:
        self.results: list[bool] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS if self.results.pop(0) else SpanExportResult.FAILURE


def test_outage_and_recovery_are_each_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    exporter = Flaky()
    outages = OutageLogger(exporter, "http://collector:4318/v1/traces")
    span: Any = object()
    exporter.results = [True, False, False, False, True, True, False]
    for _ in range(7):
        outages.export([span, span])
    # An earlier test's thread may still log that its collector is unreachable.
    logged = [record for record in caplog.records if record.threadName == "MainThread"]
    assert [(record.levelname, record.message) for record in logged] == [
        ("WARNING", "trace export failed"),
        ("INFO", "trace export recovered"),
        ("WARNING", "trace export failed"),
    ]
    assert logged[1].__dict__["lost_spans"] == 6


def test_without_the_section_tracing_is_off() -> None:
    assert tracing_of(FleetConfig(), service="qwenfleet-gateway", instance="gw-1").spans is NO_SPANS


def test_without_the_section_our_code_does_not_import_opentelemetry() -> None:
    """Check our modules only: Ray and vLLM import it themselves."""
    importers = {
        source.stem
        for folder in ("cluster", "deployments", "qwenfleet")
        for source in (ROOT / folder).rglob("*.py")
        if "opentelemetry import" in source.read_text()
        or "import opentelemetry" in source.read_text()
    }
    code = (
        "import sys\n"
        "from qwenfleet.deployments import app, engine, gateway\n"
        "from qwenfleet.deployments.dispatch import dispatcher\n"
        "from qwenfleet.deployments.ingress import http_app\n"
        "from qwenfleet.deployments.telemetry.tracing import tracing_of\n"
        "from qwenfleet.cluster.config.fleet import FleetConfig\n"
        "fleet = FleetConfig()\n"
        "tracing = tracing_of(fleet, service='s', instance='i')\n"
        "http_app.GatewayApp(fleet, None, tracing.spans)\n"
        "tracing.close()\n"
        "print(*(name.split('.')[-1] for name in sys.modules if 'qwenfleet.deploy' in name))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert importers <= OURS
    assert "dispatcher" in loaded
    assert not OURS & loaded
