"""A metrics address on loopback, with text like that of Ray's agent."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

import pytest

RAY = {
    "Component": "core_worker",
    "NodeAddress": "192.0.2.2",
    "SessionName": "session_2026-11-23_00-07-37_630234_4589",
    "Version": "2.60.0",
}
ENGINE = "ray_qwenfleet_engine_"


def line(name: str, value: float, **labels: str) -> str:
    """A sample, with labels escaped as in Prometheus' format."""
    pairs = []
    for key, text in labels.items():
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        pairs.append(f'{key}="{escaped}"')
    return f"{name}{{{','.join(pairs)}}} {value}"


def gateway(
    clock_s: float,
    *,
    model: str = "coder",
    events: float = 0,
    fleet: str = "demo",
    worker: str = "g1",
) -> list[str]:
    """Samples of a gateway after `events` requests. Each has 100 prompt tokens, 80 of them cached,
    and 10 output tokens. A tenth failed, and all missed their TTFT."""
    own = {**RAY, "WorkerId": worker, "fleet": fleet}
    q = "ray_qwenfleet_"
    lines = [
        "# TYPE ray_qwenfleet_clock_seconds gauge",
        line(f"{q}clock_seconds", clock_s, role="gateway", **own),
    ]
    own["model"] = model
    lines += [
        line(f"{q}moving_requests", 2, **own),
        line(f"{q}prompt_tokens_total", 100 * events, **own),
        line(f"{q}cached_tokens_total", 80 * events, **own),
        line(f"{q}output_tokens_total", 10 * events, **own),
        line(f"{q}requests_total", 0.9 * events, outcome="completed", **own),
        line(f"{q}requests_total", 0.1 * events, outcome="failed", **own),
        line(f"{q}rejections_total", 0.1 * events, reason="engine_refused", **own),
        line(f"{q}resumes_total", events, loss="drained", **own),
        line(f"{q}engine_losses_total", events, loss="core_died", **own),
        line(f"{q}slo_objective_ratio", 0.95, slo="ttft", **own),
        line(f"{q}slo_objective_ratio", 0.9, slo="availability", **own),
        line(f"{q}slo_events_total", events, slo="ttft", verdict="bad", **own),
        line(f"{q}slo_events_total", events, slo="availability", verdict="good", **own),
    ]
    for bound, share in (("0.1", 0.0), ("0.5", 0.5), ("1.0", 1.0), ("+Inf", 1.0)):
        name = f"{q}time_to_first_token_seconds_bucket"
        lines.append(line(name, share * events, le=bound, **own))
    return lines


def engine(
    clock_s: float,
    *,
    model: str = "coder",
    name: str = "e1",
    state: str = "ready",
    fleet: str = "demo",
    replaces_drained: bool = False,
) -> list[str]:
    own = {**RAY, "WorkerId": f"w-{name}", "fleet": fleet}
    lines = [line("ray_qwenfleet_clock_seconds", clock_s, role="engine", **own)]
    own |= {"model": model, "deployment": "engine-0", "engine": name}
    for other in ("starting", "ready", "quarantined", "draining"):
        lines.append(line(f"{ENGINE}state", float(other == state), state=other, **own))
    return [
        *lines,
        line(f"{ENGINE}running_requests", 3, **own),
        line(f"{ENGINE}waiting_requests", 1, **own),
        line(f"{ENGINE}kv_cache_usage_ratio", 0.25, **own),
        line(f"{ENGINE}replaces_drained", float(replaces_drained), **own),
    ]


def page(*parts: Iterable[str]) -> str:
    """The whole page, with samples of others that such an address has."""
    noise = ["# HELP python_info Python", "# TYPE python_info gauge", 'python_info{v="3"} 1.0']
    noise.append(line("ray_node_cpu_utilization", 12.5, **RAY))
    return "\n".join([*noise, *(text for part in parts for text in part)]) + "\n"


class MetricsPage:
    """A server that answers with `body`, which a test sets."""

    def __init__(self) -> None:
        self.body: bytes = b""
        self.status = 200
        self.wait_s = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(outer.wait_s)
                self.send_response(outer.status)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/metrics"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def say(self, *parts: Iterable[str]) -> None:
        self.body = page(*parts).encode()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="session")
def metrics_text() -> ModuleType:
    """This module, whose functions make the lines."""
    return sys.modules[__name__]


@pytest.fixture
def metrics_page() -> Iterator[MetricsPage]:
    page = MetricsPage()
    yield page
    page.stop()
