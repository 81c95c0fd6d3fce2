"""Tests that an upgrade to WebSocket is refused, with HTTP, by a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import uvicorn

from qwenfleet.cluster.config.auth import AuthConfig
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.deployments.ingress.http_app import GatewayApp

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def gateway(metrics: Any, **settings: Any) -> GatewayApp:
    return GatewayApp(
        FleetConfig(models=(ModelConfig(id="coder", engine="scripted"),), **settings), metrics
    )


async def upgrade(app: GatewayApp, path: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the error with which a real server answers an upgrade."""
    (port,) = free_ports(1, "127.0.0.1")
    config = uvicorn.Config(app, "127.0.0.1", port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE.format(path=path).encode())
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(body)["error"]
    finally:
        server.should_exit = True
        await serving


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/chat/completions", "/health/live"])
async def test_an_upgrade_is_a_404_in_our_form_and_no_failure(metrics: Any, path: str) -> None:
    status, error = await upgrade(gateway(metrics), path)
    assert (status, error["code"]) == (404, "route_not_found")
    assert metrics.ended == [("none", "refused")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_an_upgrade_without_a_key_is_a_401(metrics: Any) -> None:
    app = gateway(metrics, auth=AuthConfig(keys=(f"sha256:{'0' * 64}",)))
    status, error = await upgrade(app, "/v1/realtime")
    assert (status, error["code"]) == (401, "invalid_api_key")


async def test_a_server_that_cannot_answer_an_upgrade_closes_it(metrics: Any) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    await gateway(metrics)(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
