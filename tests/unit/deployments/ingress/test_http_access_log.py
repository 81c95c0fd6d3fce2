"""Tests what the gateway writes to the access log about each request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cluster.config.auth import AuthConfig, hash_of
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.ingress.errors import NoEngine
from qwenfleet.deployments.ingress.exchange import current_exchange
from qwenfleet.deployments.ingress.http_app import GatewayApp
from qwenfleet.deployments.telemetry.access_log import AccessEntry, AccessLog
from qwenfleet.deployments.wire.frames import EngineDescription
from tests.unit.deployments.ingress.engines import FakeEngines

KEY = "qf-mine-0123456789-0123456789-0123456789-01234"
OTHER = "qf-hers-0123456789-0123456789-0123456789-01234"


class RecordedLog(AccessLog):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[AccessEntry] = []

    def note(self, entry: AccessEntry) -> None:
        self.entries.append(entry)


@pytest.fixture
def log() -> RecordedLog:
    return RecordedLog()


@pytest.fixture
def gateway(metrics: Any, log: RecordedLog, tmp_path: Path) -> GatewayApp:
    file = tmp_path / "keys"
    file.write_text(f"{hash_of(KEY)} # alice\n{hash_of(OTHER)}\n")
    config = FleetConfig(
        models=(ModelConfig(id="coder", engine="scripted"),),
        auth=AuthConfig(keys_file=str(file)),
    )
    app = GatewayApp(config, metrics, access_log=log)
    served = app.models["coder"]
    served.engines = FakeEngines(description=EngineDescription(max_model_len=4096))
    return app


@pytest.fixture
def ask(new_client: Any, gateway: GatewayApp) -> Any:
    async def ask(
        path: str = "/v1/completions", key: str | None = KEY, body: bytes = b"{}", **scope: Any
    ) -> Any:
        client = new_client(body)
        headers = [] if key is None else [(b"authorization", b"Bearer " + key.encode())]
        whole = {"type": "http", "method": "POST", "path": path, "headers": headers} | scope
        await asyncio.wait_for(gateway(whole, client.receive, client.send), 10)
        return client

    return ask


async def test_completed_request_has_its_key_tokens_times_and_engines(
    gateway: GatewayApp, ask: Any, log: RecordedLog
) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        exchange = current_exchange()
        assert exchange is not None
        exchange.request_id = "cmpl-1"
        exchange.note_prompt(100)
        exchange.note_attempt("engine-1", 0)
        exchange.note_tokens(1, 64, exchange.started_at + 0.5, None)
        exchange.note_attempt("engine-2", 1)
        exchange.note_tokens(4, 0, exchange.started_at + 9.0, 8.5)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    gateway.models["coder"].app = answer
    await ask()
    (entry,) = log.entries
    assert entry.duration_s > 0
    assert entry.ttft_s == pytest.approx(0.5)
    entry.duration_s, entry.ttft_s = 0.0, None
    assert entry == AccessEntry(
        "POST",
        "/v1/completions",
        key="alice",
        model="coder",
        request="cmpl-1",
        status=200,
        outcome="completed",
        prompt_tokens=100,
        cached_tokens=64,
        output_tokens=5,
        engine="engine-2",
        resumes=1,
    )


async def test_failed_request_has_its_status_and_reason(
    gateway: GatewayApp, ask: Any, log: RecordedLog
) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        exchange = current_exchange()
        assert exchange is not None
        exchange.fail(NoEngine("coder", 5))
        await asyncio.sleep(60)

    gateway.models["coder"].app = fail
    await ask(key=OTHER)
    (entry,) = log.entries
    assert entry.key == hash_of(OTHER).removeprefix("sha256:")[:8], "a key without a name"
    assert (entry.status, entry.outcome, entry.reason) == (503, "unavailable", "no_engine")


async def test_client_that_disconnects_has_a_line(
    gateway: GatewayApp, new_client: Any, log: RecordedLog
) -> None:
    client = new_client(b"{}")

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        client.hung_up.set()
        await receive()

    gateway.models["coder"].app = wait
    headers = [(b"x-api-key", KEY.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/messages", "headers": headers}
    await asyncio.wait_for(gateway(scope, client.receive, client.send), 10)
    (entry,) = log.entries
    assert (entry.status, entry.outcome) == (None, "disconnected")


@pytest.mark.parametrize(
    ("request_", "status", "outcome", "reason"),
    [
        ({"key": None}, 401, "no_key", "invalid_api_key"),
        ({"key": "nonsense"}, 401, "wrong_key", "invalid_api_key"),
        ({"body": b"["}, 400, "refused", "malformed_body"),
        ({"body": b'{"model": "a secret prompt"}'}, 404, "refused", "model_not_found"),
        ({"path": "/a secret prompt"}, 404, "refused", "route_not_found"),
        ({"method": "A-secret-prompt"}, 404, "refused", "route_not_found"),
        ({"path": "/v1/models", "method": "GET"}, 200, "completed", ""),
    ],
)
async def test_refused_request_has_a_line_without_its_text(
    ask: Any, log: RecordedLog, request_: Any, status: int, outcome: str, reason: str
) -> None:
    await ask(**request_)
    (entry,) = log.entries
    assert (entry.status, entry.outcome, entry.reason) == (status, outcome, reason)
    assert "secret" not in str(entry)
    assert "nonsense" not in str(entry)


async def test_health_probes_have_no_line(ask: Any, log: RecordedLog) -> None:
    await ask("/health/live", method="GET", key=None)
    assert log.entries == []


async def test_models_show_no_path_of_the_machine(gateway: GatewayApp, ask: Any) -> None:
    gateway.models["coder"].config = ModelConfig(id="coder", source="/srv/models/coder")
    client = await ask("/v1/models", method="GET")
    assert b"/srv" not in client.body
    assert b'"root":"coder"' in client.body
