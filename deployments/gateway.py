"""Gateway: the Serve ingress that answers HTTP for every model of the fleet.

It is up before any engine is, says 503 with Retry-After until one has answered its warm-up, and
reaches vLLM's app only through an allow-list of routes.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import ray
from ray import serve

from qwenfleet.cluster import sources
from qwenfleet.cluster.config import FleetConfig, ModelConfig
from qwenfleet.cluster.errors import (
    BodyTooLarge,
    FleetError,
    MalformedBody,
    ModelLoading,
    ModelRequired,
    UnknownModel,
    UnknownRoute,
)
from qwenfleet.deployments.answers import Family, family_of
from qwenfleet.deployments.exchange import App, Exchange, Outcome, Receive, Scope, Send, respond
from qwenfleet.deployments.registry import (
    ANNOUNCE_INTERVAL_S,
    EngineRecord,
    GatewayRecord,
    RegistryClient,
)
from qwenfleet.deployments.telemetry import NO_MODEL, GatewayMetrics

if TYPE_CHECKING:
    from qwenfleet.deployments.fleet import FleetClient
    from qwenfleet.deployments.front_end import FrontEnd

logger = logging.getLogger(__name__)

MODEL_ROUTES: Final = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
    }
)
"""POST routes that go to a model's app. vLLM mounts others beside them, some of which reshape the
engine."""
OWN_ROUTES: Final = frozenset({"/v1/models", "/health/live", "/health/ready"})
TIMEOUT_HEADER: Final = b"x-request-timeout-s"
"""Shortens one request's deadline, in seconds; never past gateway.request_timeout_s."""
DISCOVERY_INTERVAL_S: Final = 0.5


class _ModelField(msgspec.Struct):
    """What the gateway itself reads of a body."""

    model: Any = None


@dataclass
class _Served:
    """One model in this gateway, from configuration to app."""

    config: ModelConfig
    client: FleetClient | None = None
    front_end: FrontEnd | None = None
    has_been_ready: bool = False

    @property
    def is_ready(self) -> bool:
        return self.front_end is not None and self.client is not None and self.client.has_engine


class GatewayApp:
    """The ASGI application: routes, errors, and one vLLM app for each model."""

    def __init__(self, config: FleetConfig, metrics: GatewayMetrics) -> None:
        self.models = {model.id: _Served(model) for model in config.models}
        self.ongoing = 0
        self._gateway = config.gateway
        self._metrics = metrics
        self._started_at = int(time.time())

    @property
    def is_ready(self) -> bool:
        """Some engine of some model answered its warm-up, and this gateway can send to it."""
        return any(model.is_ready for model in self.models.values())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        family = family_of(path)
        try:
            if method == "GET" and path in OWN_ROUTES:
                await self._answer_own(path, send)
            elif method == "POST" and path in MODEL_ROUTES:
                await self._answer_model(scope, family, receive, send)
            else:
                raise UnknownRoute(method, path)
        except FleetError as error:
            self._metrics.request_ended(NO_MODEL, Outcome.REFUSED.value)
            await respond(send, error, family)

    async def _answer_own(self, path: str, send: Send) -> None:
        if path == "/health/ready" and not self.is_ready:
            raise ModelLoading(", ".join(self.models), self._gateway.retry_after_s)
        body: dict[str, Any] = {"status": "ok"}
        if path == "/v1/models":
            body = {"object": "list", "data": [self._model_card(m) for m in self.models.values()]}
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": msgspec.json.encode(body)})

    def _model_card(self, served: _Served) -> dict[str, Any]:
        description = served.client.description if served.client is not None else None
        return {
            "id": served.config.id,
            "object": "model",
            "created": self._started_at,
            "owned_by": "qwenfleet",
            "root": served.config.resolved_source,
            "max_model_len": None if description is None else description.max_model_len,
        }

    async def _answer_model(
        self, scope: Scope, family: Family, receive: Receive, send: Send
    ) -> None:
        timeout_s = self._timeout_s(scope)
        body = await self._read_body(scope, receive)
        served = self._select(body)
        front_end = served.front_end
        if front_end is None:
            raise ModelLoading(served.config.id, self._gateway.retry_after_s)
        exchange = Exchange(
            model=served.config.id,
            family=family,
            timeout_s=timeout_s,
            keep_alive_s=self._gateway.keep_alive_s,
            metrics=self._metrics,
        )
        self.ongoing += 1
        try:
            await exchange.run(front_end.app, scope, body, receive, send)
        finally:
            self.ongoing -= 1

    def _timeout_s(self, scope: Scope) -> float:
        for name, value in scope["headers"]:
            if name == TIMEOUT_HEADER:
                try:
                    wanted_s = float(value)
                except ValueError:
                    wanted_s = 0.0
                if not wanted_s > 0:
                    text = value.decode("latin-1")
                    raise MalformedBody(
                        f"header {TIMEOUT_HEADER.decode()} is {text!r}, not seconds above 0"
                    )
                return min(wanted_s, self._gateway.request_timeout_s)
        return self._gateway.request_timeout_s

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, refused as soon as it is known to be too large."""
        limit = self._gateway.max_body_bytes
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise BodyTooLarge(limit, int(value))
        chunks: list[bytes] = []
        size = 0
        async with asyncio.timeout(self._gateway.request_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise MalformedBody("the client closed the connection before its end")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > limit:
                    raise BodyTooLarge(limit, None)
                if not message.get("more_body", False):
                    return b"".join(chunks)

    def _select(self, body: bytes) -> _Served:
        """The model that the body names; a fleet of one needs no name."""
        try:
            name = msgspec.json.decode(body, type=_ModelField).model
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedBody(str(error)) from error
        if name is None or name == "":
            if len(self.models) == 1:
                return next(iter(self.models.values()))
            raise ModelRequired(tuple(self.models))
        if not isinstance(name, str):
            raise MalformedBody(f"'model' is {name!r}, not a string")
        served = self.models.get(name)
        if served is None:
            raise UnknownModel(name, tuple(self.models))
        return served


@serve.deployment
@serve.ingress(None)
class Gateway:
    """One gateway process: the app, and the tasks that keep it joined to the fleet."""

    def __init__(self, config: dict[str, Any], *_engines: Any) -> None:
        self._config = FleetConfig.model_validate(config)
        self._id = f"gw-{uuid.uuid4().hex[:8]}"
        self._registry = RegistryClient(self._config.name)
        self._metrics = GatewayMetrics()
        self._app = GatewayApp(self._config, self._metrics)
        self._tasks: list[asyncio.Task[None]] = []

    async def __serve_build_asgi_app__(self) -> App:
        """Serve awaits this once, after the constructor; HTTP is answered from its return on."""
        self._tasks = [asyncio.create_task(self._join()), asyncio.create_task(self._announce())]
        self._tasks[0].add_done_callback(_log_end)
        return self._app

    def check_health(self) -> None:
        """A gateway whose tasks ended can never serve again: let Serve replace it."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"gateway {self._id}: {task.exception()}")

    async def _join(self) -> None:
        """Import vLLM off the loop, meet the engines, build each model's app as its first engine is
        met."""
        fleet = await asyncio.to_thread(importlib.import_module, "qwenfleet.deployments.fleet")
        for served in self._app.models.values():
            served.client = fleet.FleetClient(
                served.config.id,
                gateway=self._id,
                wire=self._config.wire,
                retry_after_s=self._config.gateway.retry_after_s,
                metrics=self._metrics,
            )
        await asyncio.to_thread(importlib.import_module, "qwenfleet.deployments.front_end")
        while True:
            snapshot = await self._registry.snapshot()
            for served in self._app.models.values():
                await self._meet(served, snapshot.engines if snapshot is not None else ())
            await asyncio.sleep(DISCOVERY_INTERVAL_S)

    async def _meet(self, served: _Served, engines: tuple[EngineRecord, ...]) -> None:
        assert served.client is not None
        served.client.update(engines)
        description = served.client.description
        if served.front_end is None and description is not None:
            from qwenfleet.deployments import front_end

            path = await asyncio.to_thread(sources.locate, served.config.resolved_source, _log)
            served.front_end = await front_end.build(
                served.config, path, description, served.client
            )
            logger.info("model ready", extra={"model": served.config.id})

    async def _announce(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        while True:
            record = GatewayRecord(
                id=self._id,
                node=node,
                pid=os.getpid(),
                is_ready=self._app.is_ready,
                models=tuple(m.config.id for m in self._app.models.values() if m.is_ready),
                requests=self._app.ongoing,
            )
            await self._registry.announce_gateway(record)
            await asyncio.sleep(ANNOUNCE_INTERVAL_S)


def _log_end(task: asyncio.Task[None]) -> None:
    """The tasks of a gateway run for ever; one that ends takes the gateway's health with it."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("gateway left the fleet", exc_info=task.exception())


def _log(text: str) -> None:
    logger.info("model source", extra={"step": text})
