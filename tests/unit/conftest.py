"""Fixtures: a fake clock, an HTTP client, recorded metrics and recorded spans.

The test folders are not packages, so tests use fixtures and import nothing from here.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from qwenfleet.deployments.telemetry.spans import Spans
from tests.metrics_page import metrics_page, metrics_text

__all__ = ["metrics_page", "metrics_text"]  # for tests of live numbers and of their commands

PATIENCE_S = 10.0
"""Much longer than any wait here takes on an idle machine; the machine may be busy."""

# Hypothesis' deadline of 200 ms for an example measures the machine; each test has its timeout.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


class FakeClock:
    """A clock that only the test advances."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def eventually(is_true: Callable[[], object]) -> None:
    """Poll until the claim holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[[Callable[[], object]], Awaitable[None]]:
    return eventually


class RecordingMetrics:
    """Stands in for GatewayMetrics and records its calls."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.judged: list[bool] = []
        self.silences: list[tuple[str, float]] = []
        self.durations: list[float] = []
        self.ttfts: list[float] = []
        self.gaps: list[float] = []
        self.queues: list[float] = []
        self.counted: Counter[str] = Counter()
        self.rejections: list[tuple[str, str]] = []
        self.decisions: list[str] = []
        self.cuts = 0
        self.losses: list[tuple[str, str]] = []
        self.resumes: list[tuple[str, float]] = []
        self.levels: dict[str, dict[str, int]] = {}
        self.pressures: dict[str, dict[str, Any]] = {}
        self.lags: list[float] = []
        self.flushes = 0

    def request_ended(self, model: str, outcome: str, *, is_judged: bool) -> None:
        self.ended.append((model, outcome))
        self.judged.append(is_judged)

    def no_token(self, model: str, waited_s: float) -> None:
        self.silences.append(("first", waited_s))

    def no_next_token(self, model: str, waited_s: float) -> None:
        self.silences.append(("next", waited_s))

    def completed(self, model: str, duration_s: float) -> None:
        self.durations.append(duration_s)

    def first_token(self, model: str, ttft_s: float) -> None:
        self.ttfts.append(ttft_s)

    def next_token(self, model: str, gap_s: float) -> None:
        self.gaps.append(gap_s)

    def rejected(self, model: str, reason: str) -> None:
        self.rejections.append((model, reason))

    def queued(self, model: str, wait_s: float) -> None:
        self.queues.append(wait_s)

    def tokens(self, model: str, **counts: int) -> None:
        self.counted.update(counts)

    def routed(self, model: str, decision: str) -> None:
        self.decisions.append(decision)

    def drain_cut(self, model: str, requests: int) -> None:
        self.cuts += requests

    def engine_lost(self, model: str, loss: str) -> None:
        self.losses.append((model, loss))

    def resumed(self, model: str, loss: str, gap_s: float) -> None:
        self.resumes.append((loss, gap_s))

    def level(self, model: str, **levels: int) -> None:
        self.levels[model] = levels

    def lagged(self, lag_s: float) -> None:
        self.lags.append(lag_s)

    def pressure(self, model: str, **pressures: Any) -> None:
        self.pressures[model] = pressures

    def flush(self) -> None:
        self.flushes += 1


@pytest.fixture
def metrics() -> RecordingMetrics:
    return RecordingMetrics()


@pytest.fixture(scope="session")
def new_metrics() -> type[RecordingMetrics]:
    return RecordingMetrics


class Client:
    """An HTTP client as an ASGI application sees it; records the answer and can disconnect."""

    def __init__(self, *chunks: bytes) -> None:
        self.messages: list[dict[str, Any]] = []
        self.hung_up = asyncio.Event()
        self.has_news = asyncio.Event()
        self._chunks = [
            {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
            for index, chunk in enumerate(chunks)
        ]

    async def receive(self) -> dict[str, Any]:
        if self._chunks:
            return self._chunks.pop(0)
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        assert not self.is_complete, f"{message} comes after the response's end"
        self.messages.append(dict(message))
        self.has_news.set()

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.messages) < count:
                self.has_news.clear()
                await self.has_news.wait()

    @property
    def is_complete(self) -> bool:
        last = self.messages[-1] if self.messages else {"type": ""}
        return last["type"] == "http.response.body" and not last.get("more_body", False)

    @property
    def status(self) -> int:
        assert self.messages[0]["type"] == "http.response.start"
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def pieces(self) -> list[bytes]:
        return [message.get("body", b"") for message in self.messages[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


@pytest.fixture
def new_client() -> type[Client]:
    return Client


class Recorder(SpanProcessor):
    """Makes spans and records them."""

    def __init__(self, ratio: float = 1.0) -> None:
        provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False)
        provider.add_span_processor(self)
        self.spans = Spans(provider.get_tracer("test"))
        self.started = 0
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)

    def named(self, name: str) -> list[ReadableSpan]:
        """Return the ended spans of a name in order of their start; fails if any span is open."""
        assert self.started == len(self.ended), "a span is open"
        found = [span for span in self.ended if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def only(self, name: str) -> Any:
        (span,) = self.named(name)
        return span


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def new_recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def kubernetes_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run the server of kubernetes_api.py, with a kubeconfig whose context `test` selects it and
    namespace `fleet`."""
    module = sys.modules.get("kubernetes_api")
    if module is None:
        path = Path(__file__).with_name("kubernetes_api.py")
        spec = importlib.util.spec_from_file_location("kubernetes_api", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["kubernetes_api"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    api = module.KubernetesApi()
    config = tmp_path / "kubeconfig"
    config.write_text(
        f"""
apiVersion: v1
kind: Config
current-context: test
clusters: [{{name: here, cluster: {{server: "{api.url}"}}}}]
users: [{{name: me, user: {{token: secret}}}}]
contexts:
  - {{name: test, context: {{cluster: here, user: me, namespace: fleet}}}}
  - {{name: bare, context: {{cluster: here, user: me}}}}
"""
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    yield api
    api.close()


@pytest.fixture
def ray_cluster_api(kubernetes_api: Any) -> Any:
    """Pods of a Ray cluster: a head on cpu-1, two workers on gpu-1, one on gpu-2."""
    for name in ("cpu-1", "gpu-1", "gpu-2", "gpu-3"):
        kubernetes_api.put("nodes", {"metadata": {"name": name}, "spec": {}})
    kubernetes_api.put("pods", _pod("head", "cpu-1", "10.0.0.1", "head"))
    kubernetes_api.put("pods", _pod("worker-1", "gpu-1", "10.0.0.2"))
    kubernetes_api.put("pods", _pod("worker-2", "gpu-1", "10.0.0.3"))
    kubernetes_api.put("pods", _pod("worker-3", "gpu-2", "10.0.0.4"))
    ended = _pod("worker-0", "gpu-1", "10.0.0.9")
    ended["status"]["phase"] = "Failed"
    kubernetes_api.put("pods", ended)
    return kubernetes_api


def _pod(name: str, home: str, address: str, kind: str = "worker") -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {"ray.io/cluster": "coder-a", "ray.io/node-type": kind},
        },
        "spec": {"nodeName": home, "containers": [{"name": f"ray-{kind}"}, {"name": "sidecar"}]},
        "status": {"phase": "Running", "podIP": address},
    }
