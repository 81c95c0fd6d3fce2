"""Errors that answer an HTTP request; each sentence is for the client.

RequestError
├── MalformedBody     400
├── ModelRequired     400
├── LongerThanContext 400
├── KeyRefused        401, with WWW-Authenticate
│   ├── MissingKey
│   └── WrongKey
├── UnknownModel      404
├── UnknownRoute      404
├── BodyTooLarge      413
├── TooManyRequests   429, with Retry-After
├── RequestTooLarge   413
├── Unavailable       503, with Retry-After
│   ├── ModelLoading
│   ├── ModelBroken
│   └── NoEngine
├── GatewayDraining   503, with Retry-After
├── RequestKillsEngines  422
├── FieldError        400, or 413 for a whole body: `field_errors.py`
├── GrammarRefused    400, and GrammarChecksBusy 429: `grammar_errors.py`
├── BodyTimeout       408
├── DeadlineExceeded  504
├── EngineRefused     500
└── GatewayFailed     500
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qwenfleet.cluster.errors import FleetError

SHOWN_CHARS: Final = 64
"""Characters of a client's own text that an error repeats."""


class RequestError(FleetError):
    """An error that answers one HTTP request; its sentence may be shown to the client."""


class MalformedBody(RequestError):
    """The body is not valid for the route."""

    status = 400
    kind = "invalid_request_error"
    code = "malformed_body"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the request body cannot be read: {self.problem}. Send one JSON object."


class ModelRequired(RequestError):
    """The request names no model and the fleet serves more than one."""

    status = 400
    kind = "invalid_request_error"
    code = "model_required"

    def __init__(self, available: Sequence[str]) -> None:
        super().__init__(tuple(available))
        self.available = tuple(available)

    def __str__(self) -> str:
        return f"the request names no model. Set 'model' to {_one_of(self.available)}."


class LongerThanContext(RequestError):
    """The prompt, and the output so far, leave no room on any engine of the model."""

    status = 400
    kind = "invalid_request_error"
    code = "context_length_exceeded"

    def __init__(self, model: str, tokens: int, limit_tokens: int) -> None:
        super().__init__(model, tokens, limit_tokens)
        self.model = model
        self.tokens = tokens
        self.limit_tokens = limit_tokens

    def __str__(self) -> str:
        return (
            f"the request has {self.tokens} tokens so far, and the engines of model "
            f"'{self.model}' take at most {self.limit_tokens} of prompt and output. Send less."
        )


class KeyRefused(RequestError):
    """The fleet requires an API key, and the request has no valid one."""

    status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"


class MissingKey(KeyRefused):
    """No header holds a key."""

    def __str__(self) -> str:
        return (
            "the request has no API key. Send the header 'Authorization: Bearer KEY' or "
            "'x-api-key: KEY'."
        )


class WrongKey(KeyRefused):
    """The key is not one of the fleet's; the sentence does not show it."""

    def __str__(self) -> str:
        return "the API key is not valid for this fleet. Check it, or ask the operator for one."


class UnknownModel(RequestError):
    """The request names a model that this fleet does not serve."""

    status = 404
    kind = "not_found_error"
    code = "model_not_found"

    def __init__(self, model: str, available: Sequence[str]) -> None:
        super().__init__(model, tuple(available))
        self.model = model
        self.available = tuple(available)

    def __str__(self) -> str:
        model = shorten(self.model)
        return f"model '{model}' is not served here. Set 'model' to {_one_of(self.available)}."


class UnknownRoute(RequestError):
    """The request asks for a route that is not on the gateway's allow-list."""

    status = 404
    kind = "not_found_error"
    code = "route_not_found"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(method, path)
        self.method = method
        self.path = path

    def __str__(self) -> str:
        method, path = shorten(self.method), shorten(self.path)
        return f"route {method} {path} does not exist. Try POST /v1/chat/completions."


class BodyTooLarge(RequestError):
    """The body is larger than `gateway.max_body_bytes`; its size is None if not known."""

    status = 413
    kind = "invalid_request_error"
    code = "body_too_large"

    def __init__(self, limit_bytes: int, body_bytes: int | None) -> None:
        super().__init__(limit_bytes, body_bytes)
        self.limit_bytes = limit_bytes
        self.body_bytes = body_bytes

    def __str__(self) -> str:
        size = "larger than" if self.body_bytes is None else f"{self.body_bytes} bytes, above"
        return (
            f"the request body is {size} the limit of {self.limit_bytes} bytes. "
            "Send less, or ask the operator to raise gateway.max_body_bytes."
        )


class TooManyRequests(RequestError):
    """This gateway has as many requests, or as many bytes of them, as it takes."""

    status = 429
    kind = "rate_limit_error"
    code = "too_many_requests"

    def __init__(self, held: str, retry_after_s: int) -> None:
        super().__init__(held, retry_after_s)
        self.held = held
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"this gateway has {self.held}, its limit. Try again in {self.retry_after_s} s."


class RequestTooLarge(RequestError):
    """The request, as an engine would get it, is larger than an engine takes. Its tokens alone
    never are."""

    status = 413
    kind = "invalid_request_error"
    code = "request_too_large"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return (
            f"the request takes {self.size_bytes} bytes on its way to an engine, above the limit "
            f"of {self.limit_bytes} bytes. Send a shorter prompt, or less in its parameters."
        )


class Unavailable(RequestError):
    """The model is configured, but no engine serves it now."""

    status = 503
    kind = "service_unavailable"

    def __init__(self, model: str, retry_after_s: int) -> None:
        super().__init__(model, retry_after_s)
        self.model = model
        self.retry_after_s = retry_after_s


class ModelLoading(Unavailable):
    """The first engine of the model is still starting."""

    code = "model_loading"

    def __str__(self) -> str:
        return f"model '{self.model}' is still loading. Try again in {self.retry_after_s} s."


class ModelBroken(Unavailable):
    """This gateway could not build the model's app; the registry has the reason."""

    code = "model_broken"

    def __str__(self) -> str:
        return (
            f"model '{self.model}' cannot be served, because its front end failed to start. "
            "Tell the operator, whose gateway log has the reason."
        )


class NoEngine(Unavailable):
    """No engine of the model has been able to work for longer than one takes to start."""

    code = "no_engine"

    def __str__(self) -> str:
        return f"no engine of model '{self.model}' is running. Try again in {self.retry_after_s} s."


class GatewayDraining(RequestError):
    """This gateway is stopping: it takes no new request, or its time for this one has ended."""

    status = 503
    kind = "service_unavailable"
    code = "gateway_draining"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"this gateway is stopping. Send the request again in {self.retry_after_s} s."


class EngineRefused(RequestError):
    """An engine rejected the request; any other would reject it as well."""

    code = "engine_refused"

    def __init__(self, model: str, engine: str, reason: str) -> None:
        super().__init__(model, engine, reason)
        self.model = model
        self.engine = engine
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"engine '{self.engine}' of model '{self.model}' rejected this request: "
            f"{self.reason}. Tell the operator: the engine's log has more."
        )


class RequestKillsEngines(RequestError):
    """Engines crashed while running this request: twice, the second time in isolation, or four
    times in all.

    SDKs do not retry this status: each try would cost another engine.
    """

    status = 422
    kind = "invalid_request_error"
    code = "request_kills_engines"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return (
            f"engines of model '{self.model}' crashed while running this request, so it is not "
            "tried again. Change it before you send it again, and tell the operator."
        )


class DeadlineExceeded(RequestError):
    """The request took longer than its deadline, at most `gateway.request_timeout_s`."""

    status = 504
    kind = "timeout"
    code = "timeout"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return (
            f"the request did not finish within {self.timeout_s:g} s. "
            "Ask for fewer tokens, or try again when the fleet is less busy."
        )


class BodyTimeout(RequestError):
    """The client did not send its whole body within the deadline."""

    status = 408
    kind = "timeout"
    code = "timeout"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return (
            f"the request body was not complete within {self.timeout_s:g} s. Send less, or check "
            "the network."
        )


class GatewayFailed(RequestError):
    """The gateway hit an unexpected error; its log has the stack trace."""

    def __str__(self) -> str:
        return (
            "the gateway failed to process this request. Send it again, or ask the operator to "
            "check the gateway log."
        )


def shorten(text: str) -> str:
    """Return a client's text as an error may repeat it: printable, and 64 characters at most."""
    shown = text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
    return "".join(char if char.isprintable() else "?" for char in shown)


def _one_of(names: tuple[str, ...]) -> str:
    if not names:
        return "a model that the fleet serves; it serves none now"
    return " or ".join(f"'{name}'" for name in names)
