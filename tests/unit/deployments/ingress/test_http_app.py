"""Tests the gateway's routes and refusals, with a hand-written app in place of vLLM's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.ingress.http_app import MODEL_ROUTES, GatewayApp
from qwenfleet.deployments.wire.frames import EngineDescription
from tests.unit.deployments.ingress.engines import FakeEngines

FORBIDDEN = [
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/health"),
    ("GET", "/load"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/server_info"),
    ("GET", "/v1/models/coder"),
    ("GET", "/v1/responses/resp_1"),
    ("POST", "/v1/responses/resp_1/cancel"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/is_scaling_elastic_ep"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/collective_rpc"),
    ("POST", "/pause"),
    ("POST", "/sleep"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/inference/v1/generate"),
    ("POST", "/invocations"),
    ("POST", "/v1/models"),
    ("POST", "/health/live"),
    ("POST", "/v1/chat/completions/"),
    ("POST", "//v1/chat/completions"),
    ("DELETE", "/v1/chat/completions"),
    ("HEAD", "/v1/models"),
    *(("GET", route) for route in sorted(MODEL_ROUTES)),
]


class FakeApp:
    """An app that answers with what it received."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls.append(scope["path"])
        body = (await receive())["body"]
        answer = json.dumps({"by": self.name, "got": len(body)}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@pytest.fixture
def one_model(metrics: Any) -> GatewayApp:
    return gateway_of(metrics, "coder")


@pytest.fixture
def two_models(metrics: Any) -> GatewayApp:
    return gateway_of(metrics, "coder", "helper")


def gateway_of(metrics: Any, *models: str, **settings: Any) -> GatewayApp:
    """Return a gateway whose models are all ready."""
    config = FleetConfig(
        models=tuple(ModelConfig(id=model, engine="scripted") for model in models),
        gateway=GatewayConfig(max_body_bytes=1000, retry_after_s=7, **settings),
    )
    app = GatewayApp(config, metrics)
    for served in app.models.values():
        served.engines = FakeEngines(description=EngineDescription(max_model_len=4096))
        served.app = FakeApp(served.config.id)
    return app


@pytest.fixture
def ask(new_client: Any) -> Any:
    async def ask(
        app: GatewayApp,
        path: str,
        *chunks: bytes,
        method: str = "POST",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Any:
        client = new_client(*(chunks or (b"",)))
        scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        await asyncio.wait_for(app(scope, client.receive, client.send), 10)
        assert client.is_complete
        return client

    return ask


def calls(app: GatewayApp) -> list[str]:
    apps: list[Any] = [served.app for served in app.models.values()]
    return [path for each in apps if each is not None for path in each.calls]


@pytest.mark.parametrize(
    "route",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
    ],
)
async def test_model_route_reaches_the_app_of_its_model(
    two_models: GatewayApp, ask: Any, metrics: Any, route: str
) -> None:
    body = b'{"model": "helper", "stream": false}'
    client = await ask(two_models, route, body[:9], body[9:])
    assert client.status == 200
    assert json.loads(client.body) == {"by": "helper", "got": len(body)}
    assert calls(two_models) == [route]
    assert metrics.ended == [("helper", "completed")]
    assert two_models.ongoing == 0


@pytest.mark.parametrize(("method", "path"), FORBIDDEN)
async def test_other_routes_are_404(
    one_model: GatewayApp, ask: Any, metrics: Any, method: str, path: str
) -> None:
    client = await ask(one_model, path, b'{"model": "coder"}', method=method)
    assert client.status == 404
    reported = json.loads(client.body)["error"]
    assert path in reported["message"]
    assert calls(one_model) == []
    assert [outcome for _, outcome in metrics.ended] == ["refused"]
    assert "coder" not in dict(metrics.ended)


async def test_models_are_listed(two_models: GatewayApp, ask: Any) -> None:
    two_models.models["helper"].engines = None
    two_models.models["coder"].default_parameters = {"temperature": 0.7, "max_tokens": 65_536}
    client = await ask(two_models, "/v1/models", method="GET")
    listed = json.loads(client.body)
    assert client.status == 200
    assert listed["object"] == "list"
    assert [(m["id"], m["object"], m["max_model_len"]) for m in listed["data"]] == [
        ("coder", "model", 4096),
        ("helper", "model", None),
    ]
    assert [m["default_parameters"] for m in listed["data"]] == [
        {"temperature": 0.7, "max_tokens": 65_536},
        {},
    ]


async def test_unknown_model_is_a_404_that_lists_the_models(
    two_models: GatewayApp, ask: Any
) -> None:
    client = await ask(two_models, "/v1/chat/completions", b'{"model": "gpt"}')
    reported = json.loads(client.body)["error"]
    assert (client.status, reported["code"]) == (404, "model_not_found")
    assert all(name in reported["message"] for name in ("'gpt'", "'coder'", "'helper'"))


@pytest.mark.parametrize("body", [b"{}", b'{"model": null}', b'{"model": ""}'])
async def test_fleet_with_two_models_requires_a_model_name(
    two_models: GatewayApp, ask: Any, body: bytes
) -> None:
    client = await ask(two_models, "/v1/chat/completions", body)
    reported = json.loads(client.body)["error"]
    assert (client.status, reported["code"]) == (400, "model_required")
    assert "'coder' or 'helper'" in reported["message"]
    assert calls(two_models) == []


@pytest.mark.parametrize("body", [b"{}", b'{"model": null}', b'{"model": ""}'])
async def test_fleet_with_one_model_needs_no_model_name(
    one_model: GatewayApp, ask: Any, body: bytes
) -> None:
    assert (await ask(one_model, "/v1/chat/completions", body)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"model=coder",
        b'["coder"]',
        b'"coder"',
        b'{"model": "\xff"}',
        b'{"model": ' + b"[" * 980,
        b'{"model": 7}',
        b'{"model": ["coder"]}',
    ],
)
async def test_body_with_an_invalid_model_is_a_400(
    one_model: GatewayApp, ask: Any, body: bytes
) -> None:
    client = await ask(one_model, "/v1/chat/completions", body)
    reported = json.loads(client.body)["error"]
    assert (client.status, reported["type"]) == (400, "invalid_request_error")
    assert calls(one_model) == []


async def test_body_too_large_by_its_header_is_refused_before_it_is_read(
    one_model: GatewayApp, ask: Any
) -> None:
    client = await ask(
        one_model, "/v1/chat/completions", b"{}", headers=[(b"content-length", b"1001")]
    )
    assert client.status == 413
    assert "1001 bytes, above the limit of 1000" in json.loads(client.body)["error"]["message"]


async def test_body_too_large_by_its_chunks_is_refused_while_it_is_read(
    one_model: GatewayApp, ask: Any
) -> None:
    chunks = [b'{"model": "coder", "x": "', *[b"x" * 200] * 5, b'"}']
    client = await ask(one_model, "/v1/chat/completions", *chunks)
    assert client.status == 413
    assert calls(one_model) == []


async def test_body_of_exactly_the_limit_passes(one_model: GatewayApp, ask: Any) -> None:
    body = b'{"model": "coder"}'.ljust(1000)
    client = await ask(
        one_model, "/v1/chat/completions", body, headers=[(b"content-length", b"1000")]
    )
    assert (client.status, json.loads(client.body)["got"]) == (200, 1000)


@pytest.mark.parametrize("value", [b"soon", b"0", b"-1", b"nan", b"", b"\xff"])
async def test_invalid_timeout_header_is_a_400(
    one_model: GatewayApp, ask: Any, value: bytes
) -> None:
    headers = [(b"x-request-timeout-s", value)]
    client = await ask(one_model, "/v1/chat/completions", b"{}", headers=headers)
    assert client.status == 400
    assert "x-request-timeout-s" in json.loads(client.body)["error"]["message"]


@pytest.mark.parametrize(("header", "reported"), [(b"0.05", "0.05 s"), (b"1e9", "0.2 s")])
async def test_timeout_header_shortens_but_never_extends_the_deadline(
    metrics: Any, ask: Any, header: bytes, reported: str
) -> None:
    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    app = gateway_of(metrics, "coder", request_timeout_s=0.2)
    app.models["coder"].app = hang
    headers = [(b"x-request-timeout-s", header)]
    client = await ask(app, "/v1/chat/completions", b"{}", headers=headers)
    assert client.status == 504
    assert reported in json.loads(client.body)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b'{"model": "gpt"}', 404, "not_found_error"),
        (b"{", 400, "invalid_request_error"),
        (b" " * 2000, 413, "request_too_large"),
    ],
)
async def test_anthropic_clients_are_refused_in_anthropics_format(
    one_model: GatewayApp, ask: Any, body: bytes, status: int, kind: str
) -> None:
    client = await ask(one_model, "/v1/messages", body)
    reported = json.loads(client.body)
    assert (client.status, reported["type"], reported["error"]["type"]) == (status, "error", kind)
    assert set(reported) == {"type", "error"}


async def test_requests_in_flight_are_counted(metrics: Any, ask: Any) -> None:
    app = gateway_of(metrics, "coder")
    seen: list[int] = []

    async def count(scope: Any, receive: Any, send: Any) -> None:
        seen.append(app.ongoing)
        raise RuntimeError("fails")

    app.models["coder"].app = count
    assert (await ask(app, "/v1/completions", b"{}")).status == 500
    assert (seen, app.ongoing) == ([1], 0)
    assert metrics.ended == [("coder", "failed")]
