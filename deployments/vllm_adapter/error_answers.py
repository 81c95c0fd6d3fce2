"""vLLM's refusals, as the API that was called words them.

vLLM (0.32) answers most of a client's faults in OpenAI's form, also on Anthropic's routes, with its
own types; some it answers with 500 or 501; and a stream's first fault comes after a 200. `Answers`
wraps its app: a refusal leaves with a status from 400 to 499 and in the form of our own errors.

vLLM internals used here (0.32): the bodies of create_error_response and translate_error_response,
VLLMClientError, EngineGenerateError and its handler's use of `app.state.server`.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from jinja2 import TemplateError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineGenerateError

from qwenfleet.deployments.ingress import answers
from qwenfleet.deployments.ingress.answers import Family, family_of
from qwenfleet.deployments.ingress.errors import GatewayFailed
from qwenfleet.deployments.ingress.exchange import current_exchange
from qwenfleet.deployments.ingress.field_errors import FieldError

logger = logging.getLogger(__name__)

LONGEST: Final = 1000
"""Characters of a message of vLLM's; longer ones repeat what the client sent."""
FAULTS: Final = (ValueError, TypeError, OverflowError, RecursionError)
"""Exceptions by which vLLM fails on a value of the request while it prepares the request."""
KINDS: Final = {404: ("not_found_error", "not_found")}
"""Type and code by status; those of any other are `invalid_request`."""
NOT_IMPLEMENTED: Final = 501
ERROR_EVENTS: Final = (b'data: {"error"', b"event: error\n")
"""How vLLM's error events begin, in OpenAI's and in Anthropic's streams."""
STATUSES: Final = {"BadRequestError": 400, "NotFoundError": 404, "UnprocessableEntityError": 422}
"""Status by vLLM's type, for events of a stream, which may have no code."""


class Refused(FieldError):
    """vLLM's front end refused the request."""

    def __init__(self, status: int, message: str, param: str | None) -> None:
        super().__init__(status, message, param)
        self.status = status
        kind, self.code = KINDS.get(status, ("invalid_request_error", "invalid_request"))
        self.kind = kind
        self.message = message
        self.field = param or ""

    @property
    def param(self) -> str | None:
        return self.field or None

    def __str__(self) -> str:
        message = self.message
        return message if len(message) <= LONGEST else f"{message[: LONGEST - 1]}…"


def install(app: FastAPI) -> None:
    """Make the app answer exceptions that vLLM has no handler for, or a broken one."""
    app.state.server = SimpleNamespace(should_exit=False)  # vLLM would end its server by it
    app.add_exception_handler(EngineGenerateError, _answer)
    app.add_exception_handler(RecursionError, _answer)
    app.add_exception_handler(TemplateError, _answer)
    app.middleware_stack = None  # vLLM has built it already; the next request builds it again


async def _answer(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    if refusal is None:
        logger.error("vLLM's front end failed", exc_info=error)
    return _response(refusal or GatewayFailed(), request)


def _response(error: Any, request: Request) -> Response:
    body = answers.error_body(error, family_of(request.url.path))
    return Response(body, error.status, media_type="application/json")


def refusal_of(error: BaseException | None) -> Refused | None:
    """Return the answer to an exception that a value of the request led to; None for another."""
    if isinstance(error, EngineGenerateError):
        error = error.__cause__
    if isinstance(error, RecursionError):
        return Refused(400, "the request nests values too deep", None)
    if isinstance(error, VLLMClientError):
        return Refused(400, str(error), getattr(error, "parameter", None))
    if isinstance(error, (*FAULTS, TemplateError)):
        return Refused(400, str(error), None)
    return None


class Answers:
    """An app whose refusals have the form of the API that was called."""

    def __init__(self, inner: FastAPI) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            send = _Answer(send, family_of(scope["path"])).send
        app: ASGIApp = self.inner
        try:
            await app(scope, receive, send)
        except Exception as error:
            exchange, refusal = current_exchange(), refusal_of(error.__cause__ or error)
            if exchange is None or refusal is None:
                raise
            exchange.fail(refusal)  # the answer has begun, or vLLM has no handler


class _Answer:
    """One answer on its way; a refusal is held until it is whole."""

    def __init__(self, send: Send, family: Family) -> None:
        self._send = send
        self._family = family
        self._start: Message | None = None
        self._parts: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is not None:
            self._parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                await self._refuse(self._start, b"".join(self._parts))
        elif not self._is_error(message.get("body", b"")):
            await self._send(message)

    def _is_error(self, body: bytes) -> bool:
        """Fail the exchange if this is an error event of vLLM's; the exchange words its own."""
        exchange = current_exchange() if body.startswith(ERROR_EVENTS) else None
        if exchange is None:
            return False
        data = body[body.find(b"{") :].partition(b"\n")[0]
        exchange.fail(_error_of(_status_in(data), data))
        return True

    async def _refuse(self, start: Message, body: bytes) -> None:
        error = _error_of(start["status"], body)
        own = answers.headers(error)
        replaced = {b"content-length", *(name for name, _ in own)}
        kept = [pair for pair in start.get("headers", ()) if pair[0].lower() not in replaced]
        await self._send({**start, "status": error.status, "headers": [*kept, *own]})
        body = answers.error_body(error, self._family)
        await self._send({"type": "http.response.body", "body": body})


def _error_of(status: int, body: bytes) -> FieldError | GatewayFailed:
    """Return our error for one of vLLM's, a JSON object."""
    if status >= 500 and status != NOT_IMPLEMENTED:
        return GatewayFailed()
    found = _details(body)
    message = str(found.get("message") or "the request is not valid")
    param = found.get("param")
    status = 400 if status == NOT_IMPLEMENTED else status
    return Refused(status, message, param if isinstance(param, str) else None)


def _status_in(event: bytes) -> int:
    """Return the status of an error event's data."""
    found = _details(event)
    code = found.get("code")
    return code if isinstance(code, int) else STATUSES.get(str(found.get("type")), 500)


def _details(body: bytes) -> dict[str, Any]:
    """Return vLLM's error object; empty if the body is its framework's."""
    try:
        found = msgspec.json.decode(body)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
