"""Tests a request's span at its gateway: parent, attributes, and that it ends once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind, StatusCode

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.ingress import exchange as exchange_module
from qwenfleet.deployments.ingress.errors import NoEngine
from qwenfleet.deployments.ingress.exchange import current_exchange
from qwenfleet.deployments.ingress.http_app import GatewayApp
from qwenfleet.deployments.telemetry.tracing import NO_REQUEST_SPAN, NO_SPANS

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01".encode()
UNSAMPLED = f"00-{TRACE}-{PARENT}-00".encode()
PATH = "/v1/chat/completions"
BODY = b'{"model": "coder", "messages": "a secret prompt"}'
SSE = [(b"content-type", b"text/event-stream")]
Headers = list[tuple[bytes, bytes]]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "ABORT_GRACE_S", 0.05)


class FakeApp:
    """Stands in for vLLM's app and records the headers that it receives."""

    def __init__(self, behave: Any = None) -> None:
        self.headers: Headers = []
        self._behave = behave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = scope["headers"]
        if self._behave is not None:
            return await self._behave(send)
        await start(send, 200)
        await send({"type": "http.response.body", "body": b"a secret answer"})


async def start(send: Any, status: int, headers: Sequence[Any] = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


class OneEngine:
    """Stands in for a model's engines."""

    description = None
    description = None
    num_engines = 1
    num_moving = 0

    def end_waiting(self) -> None:
        raise AssertionError("an engine is there")


class Desk:
    """A gateway with one model that is ready and one that loads."""

    def __init__(self, metrics: Any, client: Any, spans: Any, **settings: Any) -> None:
        models = tuple(ModelConfig(id=name, engine="scripted") for name in ("coder", "loading"))
        config = FleetConfig(models=models, gateway=GatewayConfig(max_body_bytes=99, **settings))
        self.app = GatewayApp(config, metrics, spans)
        self.app.models["coder"].engines = OneEngine()
        self._client = client

    async def ask(
        self, body: bytes = BODY, headers: Sequence[tuple[bytes, bytes]] = (), behave: Any = None
    ) -> FakeApp:
        inner_app = self.app.models["coder"].app = FakeApp(behave)
        client = self._client(body)
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": list(headers)}
        await asyncio.wait_for(self.app(scope, client.receive, client.send), 10)
        return inner_app


@pytest.fixture
def desk(metrics: Any, new_client: Any, recorder: Any) -> Desk:
    return Desk(metrics, new_client, recorder.spans)


async def test_request_span_is_a_child_of_the_clients_span(desk: Desk, recorder: Any) -> None:
    await desk.ask(headers=[(b"traceparent", SAMPLED), (b"tracestate", b"a=1"), (b"x", b"y")])
    span = recorder.only(f"POST {PATH}")
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state == {"a": "1"}
    assert span.kind is SpanKind.SERVER
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": PATH,
        "http.response.status_code": 200,
        "url.path": PATH,
        "url.scheme": "http",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "coder",
        "qwenfleet.outcome": "completed",
    }


async def test_vllms_app_gets_our_context_instead_of_the_clients(desk: Desk, recorder: Any) -> None:
    app = await desk.ask(headers=[(b"traceparent", SAMPLED), (b"tracestate", b"a=1"), (b"x", b"y")])
    span_id = f"{recorder.only(f'POST {PATH}').context.span_id:016x}"
    ours = f"00-{TRACE}-{span_id}-01".encode()
    assert app.headers == [(b"x", b"y"), (b"traceparent", ours), (b"tracestate", b"a=1")]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [b""],
        [b"no such thing"],
        [SAMPLED[:-1]],
        [SAMPLED + b"-00"],
        [SAMPLED.upper()],
        [b"ff" + SAMPLED[2:]],
        [f"00-{'0' * 32}-{PARENT}-01".encode()],
        [b"\xff" * 600],
        [SAMPLED, SAMPLED],
    ],
)
async def test_malformed_parent_starts_a_new_trace(
    desk: Desk, recorder: Any, headers: list[bytes]
) -> None:
    await desk.ask(headers=[(b"traceparent", value) for value in headers])
    span = recorder.only(f"POST {PATH}")
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parent=st.binary(max_size=80), state=st.lists(st.binary(max_size=80), max_size=3))
def test_client_headers_never_raise(recorder: Any, parent: bytes, state: Any) -> None:
    headers = [(b"traceparent", parent), *((b"tracestate", value) for value in state)]
    for first in ((b"traceparent", SAMPLED), headers[0]):
        scope = {"method": "POST", "path": PATH, "headers": [first, *headers[1:]]}
        with recorder.spans.request(scope) as span:
            names = [name for name, _ in span.carried_by(scope)["headers"]]
        assert names[0] == b"traceparent"


async def test_unsampled_request_is_not_recorded_and_vllm_gets_the_flag(
    desk: Desk, recorder: Any
) -> None:
    app = await desk.ask(headers=[(b"traceparent", UNSAMPLED)])
    assert recorder.started == 0
    ((name, value),) = app.headers
    assert (name, value[:36], value[-3:]) == (b"traceparent", UNSAMPLED[:36], b"-00")


async def test_sample_ratio_applies_to_requests_without_a_parent(
    metrics: Any, new_client: Any, new_recorder: Any
) -> None:
    recorder = new_recorder(ratio=0.0)
    desk = Desk(metrics, new_client, recorder.spans)
    await desk.ask()
    assert recorder.started == 0
    await desk.ask(headers=[(b"traceparent", SAMPLED)])
    assert recorder.only(f"POST {PATH}").parent is not None


@pytest.mark.parametrize(
    ("body", "status", "code", "outcome"),
    [
        (b'{"model": "gpt"}', 404, "model_not_found", "refused"),
        (b"{", 400, "malformed_body", "refused"),
        (b"x" * 100, 413, "body_too_large", "refused"),
        (b'{"model": "loading"}', 503, "model_loading", "unavailable"),
    ],
)
async def test_refused_request_has_a_span_with_its_status(
    desk: Desk, recorder: Any, body: bytes, status: int, code: str, outcome: str
) -> None:
    await desk.ask(body)
    span = recorder.only(f"POST {PATH}")
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes["error.type"] == code
    assert span.attributes["qwenfleet.outcome"] == outcome
    assert (span.status.status_code is StatusCode.ERROR) == (status >= 500)


async def fails(send: Any) -> None:
    raise RuntimeError("a secret prompt")


async def refuses(send: Any) -> None:
    await start(send, 422)
    await send({"type": "http.response.body", "body": b"{}"})


async def hangs(send: Any) -> None:
    await asyncio.sleep(60)


async def loses_its_engine(send: Any) -> None:
    exchange = current_exchange()
    assert exchange is not None
    await start(send, 200, SSE)
    exchange.note_tokens(3, 16, 1.0, None)
    await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
    exchange.prompt_tokens += 20
    exchange.fail(NoEngine("coder", 5))
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("behave", "status", "outcome", "code"),
    [
        (fails, 500, "failed", "internal_error"),
        (refuses, 422, "refused", None),
        (hangs, 504, "timed_out", "timeout"),
        (loses_its_engine, 200, "engine_lost", "no_engine"),
    ],
)
async def test_span_ends_once_for_every_end_of_its_exchange(
    metrics: Any, new_client: Any, recorder: Any, behave: Any, status: int, outcome: str, code: Any
) -> None:
    desk = Desk(metrics, new_client, recorder.spans, request_timeout_s=0.2)
    await desk.ask(behave=behave)
    span = recorder.only(f"POST {PATH}")
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes["qwenfleet.outcome"] == outcome
    assert span.attributes.get("error.type") == code
    assert (span.status.status_code is StatusCode.ERROR) == (code is not None)
    assert "secret" not in str(span.to_json())


async def test_span_has_token_counts(desk: Desk, recorder: Any) -> None:
    await desk.ask(behave=loses_its_engine)
    attributes = recorder.only(f"POST {PATH}").attributes
    counts = {name: value for name, value in attributes.items() if name.startswith("gen_ai.usage.")}
    assert counts == {
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 16,
    }


async def test_disconnect_ends_the_span_without_a_status(
    desk: Desk, recorder: Any, new_client: Any
) -> None:
    desk.app.models["coder"].app = FakeApp(hangs)
    client = new_client(BODY)
    client.hung_up.set()
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    await asyncio.wait_for(desk.app(scope, client.receive, client.send), 10)
    span = recorder.only(f"POST {PATH}")
    assert span.attributes["qwenfleet.outcome"] == "disconnected"
    assert "http.response.status_code" not in span.attributes
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("chunks", [(BODY,), ()])
async def test_cancelled_request_ends_its_span(
    desk: Desk, recorder: Any, new_client: Any, chunks: Any
) -> None:
    """Cancel while the app runs, or before the body arrives."""
    desk.app.models["coder"].app = FakeApp(hangs)
    client = new_client(*chunks)
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    call = asyncio.create_task(desk.app(scope, client.receive, client.send))
    await asyncio.sleep(0.02)
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()
    assert recorder.only(f"POST {PATH}").attributes["qwenfleet.outcome"] == "disconnected"


async def test_without_tracing_a_request_passes_unchanged(metrics: Any, new_client: Any) -> None:
    desk = Desk(metrics, new_client, NO_SPANS)
    seen: list[Any] = []

    async def look(send: Any) -> None:
        exchange = current_exchange()
        assert exchange is not None
        seen.append(exchange.span)
        await refuses(send)

    headers = [(b"traceparent", SAMPLED)]
    app = await desk.ask(headers=headers, behave=look)
    assert app.headers == headers
    assert seen == [NO_REQUEST_SPAN]


async def test_other_routes_have_no_span(desk: Desk, recorder: Any, new_client: Any) -> None:
    for method, path in (("GET", "/health/live"), ("GET", "/v1/models"), ("POST", "/metrics")):
        client = new_client(b"")
        scope = {"type": "http", "method": method, "path": path, "headers": []}
        await desk.app(scope, client.receive, client.send)
    assert recorder.started == 0
