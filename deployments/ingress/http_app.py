"""GatewayApp: the ASGI application of a gateway, in front of one vLLM app for each model.

It answers 503 with Retry-After until an engine has answered its warm-up. vLLM's apps are reachable
only through an allow-list of routes and, if the fleet has keys, with a valid key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.labels import Outcome
from qwenfleet.deployments.ingress import infill, policy, request_headers, websocket
from qwenfleet.deployments.ingress.admission import Admission, Place
from qwenfleet.deployments.ingress.answers import Family, family_of
from qwenfleet.deployments.ingress.body import read_body
from qwenfleet.deployments.ingress.drain import Drain
from qwenfleet.deployments.ingress.errors import (
    DeadlineExceeded,
    GatewayDraining,
    GatewayFailed,
    ModelLoading,
    ModelRequired,
    NoEngine,
    Unavailable,
    UnknownModel,
    UnknownRoute,
)
from qwenfleet.deployments.ingress.exchange import Exchange, respond
from qwenfleet.deployments.ingress.field_errors import WrongValue
from qwenfleet.deployments.ingress.fim_fields import at_start, is_quick
from qwenfleet.deployments.ingress.infill_answers import COMPLETIONS, InfillApp
from qwenfleet.deployments.ingress.keys import OPEN_ROUTES, Guard
from qwenfleet.deployments.ingress.outcome import outcome_of
from qwenfleet.deployments.ingress.pace import Pace
from qwenfleet.deployments.ingress.rules import describe
from qwenfleet.deployments.ingress.served import Served
from qwenfleet.deployments.telemetry.access_log import UNKNOWN, AccessEntry, AccessLog
from qwenfleet.deployments.telemetry.gateway_metrics import NO_MODEL, GatewayMetrics
from qwenfleet.deployments.telemetry.tracing import NO_SPANS

if TYPE_CHECKING:
    from qwenfleet.deployments.telemetry.tracing import AnyRequestSpan, AnySpans

logger = logging.getLogger(__name__)

INFILL: Final = "/infill"
"""llama.cpp's route, for editors; the model's app gets a completion."""
MODEL_ROUTES: Final = frozenset(
    {
        "/v1/chat/completions",
        COMPLETIONS,
        INFILL,
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
    }
)
"""POST routes that go to a model's app. vLLM mounts other routes as well, and some of those change
the engine."""
QUICK_ROUTES: Final = frozenset({COMPLETIONS, INFILL})
"""Routes of requests that an editor may be waiting for."""
WITHOUT_TOKENS: Final = frozenset({"/v1/messages/count_tokens", "/tokenize", "/detokenize"})
"""Model routes that need no engine."""
OWN_ROUTES: Final = OPEN_ROUTES | {"/v1/models"}
KNOWN_ROUTES: Final = MODEL_ROUTES | OWN_ROUTES
METHODS: Final = frozenset({"GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"})
TIMEOUT_HEADER: Final = b"x-request-timeout-s"
"""Shortens one request's deadline, in seconds; it cannot exceed gateway.request_timeout_s."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One request for a model: its two channels, and what records it."""

    receive: Receive
    send: Send
    span: AnyRequestSpan
    entry: AccessEntry
    place: Place


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asks for, within the limits."""

    served: Served
    body: bytes
    """The body for the model's app."""
    wanted: infill.Wanted | None = None
    """The form of the answer, if it is llama.cpp's."""

    def around(self, app: ASGIApp) -> ASGIApp:
        return app if self.wanted is None else InfillApp(app, self.wanted)


class GatewayApp:
    """The ASGI application: routes, errors, and one vLLM app for each model."""

    def __init__(
        self,
        config: FleetConfig,
        metrics: GatewayMetrics,
        spans: AnySpans = NO_SPANS,
        access_log: AccessLog | None = None,
    ) -> None:
        """Raises ConfigError when the fleet's keys file cannot be used."""
        self.models = {model.id: Served(model, config.gateway) for model in config.models}
        self.drain = Drain()
        self.guard = Guard(config.auth)
        self.admission = Admission(config.gateway)
        self._pace = Pace()
        self._gateway = config.gateway
        self._metrics = metrics
        self._spans = spans
        self._access_log = AccessLog() if access_log is None else access_log
        self._started_at = int(time.time())
        self._exchanges: set[Exchange] = set()

    @property
    def is_ready(self) -> bool:
        """Whether this gateway takes requests and has a working engine of any model."""
        return not self.drain.is_on and any(model.is_ready for model in self.models.values())

    @property
    def ongoing(self) -> int:
        """Requests in progress at this gateway."""
        return sum(model.ongoing for model in self.models.values())

    def report(self) -> None:
        """Report the current levels to Prometheus; called once or twice a second."""
        for name, model in self.models.items():
            self._metrics.level(
                name,
                in_progress=model.ongoing,
                moving=0 if model.engines is None else model.engines.num_moving,
                engines=model.num_engines,
            )
        self._metrics.flush()

    def end_all(self) -> None:
        """End the requests that are left when a drain's time is over."""
        for exchange in self._exchanges:
            exchange.fail(GatewayDraining(self._gateway.retry_after_s))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            send = websocket.as_http(scope, send)
        elif scope["type"] != "http":
            return
        method, path = scope.get("method", "WEBSOCKET"), scope["path"]
        began_at = time.monotonic()
        entry = AccessEntry(
            method if method in METHODS else UNKNOWN, path if path in KNOWN_ROUTES else UNKNOWN
        )
        try:
            await self._answer(scope, receive, self._parting(send), entry)
        finally:
            if method != "GET" or path not in OPEN_ROUTES:  # health probes are not requests
                entry.duration_s = time.monotonic() - began_at
                entry.outcome = entry.outcome or Outcome.DISCONNECTED.value
                self._access_log.note(entry)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, entry: AccessEntry) -> None:
        method, path = scope.get("method", "WEBSOCKET"), scope["path"]
        family = family_of(path)
        try:
            admitted = self.guard.admit(scope)
            entry.key = self.guard.name_of(scope)
            if method == "GET" and path in OWN_ROUTES:
                await self._answer_own(path, send)
                entry.status, entry.outcome = 200, Outcome.COMPLETED.value
            elif method == "POST" and path in MODEL_ROUTES:
                room = self.admission.enter(may_be_quick=path in QUICK_ROUTES)
                with room as place, self._spans.request(admitted) as span:
                    call = _Call(receive, send, span, entry, place)
                    await self._answer_traced(admitted, family, call)
            else:
                raise UnknownRoute(method, path)
        except Exception as failure:
            error = failure if isinstance(failure, FleetError) else GatewayFailed()
            if error is not failure:
                logger.exception("failed to answer a request")
            outcome = outcome_of(error)
            model = error.model if isinstance(error, Unavailable) else NO_MODEL
            entry.status, entry.outcome, entry.reason = error.status, outcome.value, error.code
            if method != "GET" or path not in OPEN_ROUTES:  # health probes do not count as requests
                makes_tokens = path in MODEL_ROUTES - WITHOUT_TOKENS
                self._metrics.request_ended(model, outcome, is_judged=makes_tokens)
                self._metrics.rejected(model, error.code)
            await respond(send, error, family)

    async def _answer_own(self, path: str, send: Send) -> None:
        if path == "/health/ready" and not self.is_ready:
            raise self._why_not_ready()
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

    def _why_not_ready(self) -> FleetError:
        if self.drain.is_on:
            return GatewayDraining(self._gateway.retry_after_s)
        has_app = any(model.has_been_ready for model in self.models.values())
        kind = NoEngine if has_app else ModelLoading
        return kind(", ".join(self.models), self._gateway.retry_after_s)

    def _parting(self, send: Send) -> Send:
        """Close the connection with an answer that begins while the gateway drains, so that the
        client's next request goes to another gateway."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self.drain.is_on:
                fields = [pair for pair in message.get("headers", ()) if pair[0] != b"connection"]
                message = {**message, "headers": [*fields, (b"connection", b"close")]}
            await send(message)

        return send_and_close

    def _model_card(self, served: Served) -> dict[str, Any]:
        description = None if served.engines is None else served.engines.description
        return {
            "id": served.config.id,
            "object": "model",
            "created": self._started_at,
            "owned_by": "qwenfleet",
            "root": served.config.id,  # never a path of the machine
            "max_model_len": None if description is None else description.max_model_len,
            "default_parameters": served.default_parameters,
        }

    async def _answer_traced(self, scope: Scope, family: Family, call: _Call) -> None:
        """Answer, and record in the span an error that comes before any exchange."""
        try:
            await self._answer_model(call.span.carried_by(scope), family, call)
        except FleetError as error:
            call.span.fail(error)
            call.span.answer(outcome_of(error), None)
            raise

    async def _answer_model(self, scope: Scope, family: Family, call: _Call) -> None:
        timeout_s = self._timeout_s(scope)
        limit_bytes = self._gateway.max_body_bytes
        async with self.admission.body_of(call.place, timeout_s):
            body = await read_body(scope, call.receive, limit_bytes, self.admission, call.place)
        scope = request_headers.checked(scope, self._gateway.limits.id_chars)
        await self._turn(len(body), timeout_s)
        asked = self._select(scope["path"], body, call)
        served = asked.served
        if self.drain.refuses:
            raise GatewayDraining(self._gateway.retry_after_s)
        makes_tokens = scope["path"] not in WITHOUT_TOKENS
        exchange = Exchange(
            model=served.config.id,
            family=family,
            timeout_s=timeout_s,
            keep_alive_s=self._gateway.keep_alive_s,
            metrics=self._metrics,
            span=call.span,
            entry=call.entry,
            makes_tokens=makes_tokens,
            is_clients_deadline=timeout_s < self._gateway.request_timeout_s,
        )
        exchange.is_quick = call.place.is_quick
        served.ongoing += 1
        self._exchanges.add(exchange)
        try:
            if served.holds(needs_engine=makes_tokens):
                admission = served.admit_later(timeout_s, needs_engine=makes_tokens)
                app = await exchange.hold(admission, call.receive, call.send)
            else:
                app = served.admit(needs_engine=makes_tokens)
            if app is not None:
                app = asked.around(app)
                await exchange.run(app, scope, asked.body, call.receive, call.send)
        finally:
            self._exchanges.discard(exchange)
            served.ongoing -= 1

    async def _turn(self, body_bytes: int, timeout_s: float) -> None:
        """Wait for a turn to work on the body. Raises DeadlineExceeded."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._pace.turn(body_bytes)
        except TimeoutError:
            raise DeadlineExceeded(timeout_s) from None

    def _timeout_s(self, scope: Scope) -> float:
        for name, value in scope["headers"]:
            if name == TIMEOUT_HEADER:
                try:
                    wanted_s = float(value)
                except ValueError:
                    wanted_s = 0.0
                if not wanted_s > 0:
                    name_of_it = TIMEOUT_HEADER.decode()
                    raise WrongValue(name_of_it, value.decode("latin-1"), "seconds above 0")
                return min(wanted_s, self._gateway.request_timeout_s)
        return self._gateway.request_timeout_s

    def _select(self, route: str, body: bytes, call: _Call) -> _Asked:
        """Return what a request asks for, if it is within the limits and there is room for it."""
        limits = self._gateway.limits
        fields = policy.read(body, limits)
        served = self._named(fields.get("model"))
        call.span.select(served.config.id)
        wanted = None
        if route == INFILL:
            wanted = infill.wanted(fields, served.config.id, limits)
            fields = infill.completion_of(fields, limits, served.context_tokens)
            route = COMPLETIONS
        policy.check(route, fields, limits, served.context_tokens)
        if route != COMPLETIONS:
            return _Asked(served, body)
        self.admission.settle(call.place, is_quick=is_quick(fields, len(body)))
        moved = at_start(fields)
        if wanted is not None or moved is not None:
            body = msgspec.json.encode(moved or fields)
        return _Asked(served, body, wanted)

    def _named(self, name: Any) -> Served:
        """Return the model that a body names; a fleet with one model needs no name."""
        if name is None or name == "":
            if len(self.models) == 1:
                return next(iter(self.models.values()))
            raise ModelRequired(tuple(self.models))
        if not isinstance(name, str):
            raise WrongValue("model", describe(name), "the name of a model as a string")
        served = self.models.get(name)
        if served is None:
            raise UnknownModel(name, tuple(self.models))
        return served
