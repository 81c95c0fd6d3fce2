"""Tests errors and keep-alives in the format of each API family."""

from __future__ import annotations

import json

import pytest

from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.ingress.answers import (
    Family,
    error_body,
    error_event,
    family_of,
    headers,
    keep_alive,
)
from qwenfleet.deployments.ingress.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineRefused,
    GatewayFailed,
    MalformedBody,
    MissingKey,
    NoEngine,
    UnknownModel,
    WrongKey,
)

ERRORS: list[FleetError] = [
    MalformedBody("no JSON"),
    WrongKey(),
    UnknownModel('a "model"\n\n', ["coder"]),
    BodyTooLarge(10, 11),
    NoEngine("coder", 5),
    EngineRefused("coder", "engine-1", "reset"),
    DeadlineExceeded(3),
    GatewayFailed(),
]


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/v1/chat/completions", Family.OPENAI),
        ("/v1/completions", Family.OPENAI),
        ("/v1/models", Family.OPENAI),
        ("/tokenize", Family.OPENAI),
        ("/v1/responses", Family.RESPONSES),
        ("/v1/messages", Family.ANTHROPIC),
        ("/v1/messages/count_tokens", Family.ANTHROPIC),
    ],
)
def test_route_belongs_to_one_api_family(path: str, family: Family) -> None:
    assert family_of(path) is family


@pytest.mark.parametrize("family", [Family.OPENAI, Family.RESPONSES])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_openai_clients_get_an_error_object(error: FleetError, family: Family) -> None:
    assert json.loads(error_body(error, family)) == {
        "error": {
            "message": str(error),
            "type": error.kind,
            "param": None,
            "code": error.code,
        }
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MalformedBody("no JSON"), "invalid_request_error"),
        (MissingKey(), "authentication_error"),
        (WrongKey(), "authentication_error"),
        (UnknownModel("x", ["coder"]), "not_found_error"),
        (BodyTooLarge(10, 11), "request_too_large"),
        (NoEngine("coder", 5), "api_error"),
        (EngineRefused("coder", "engine-1", "reset"), "api_error"),
        (DeadlineExceeded(3), "timeout_error"),
        (GatewayFailed(), "api_error"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anthropic_clients_get_anthropics_error_format(error: FleetError, kind: str) -> None:
    assert json.loads(error_body(error, Family.ANTHROPIC)) == {
        "type": "error",
        "error": {"type": kind, "message": str(error)},
    }


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_in_a_stream_is_one_event(error: FleetError, family: Family) -> None:
    event = error_event(error, family, 7).decode()
    assert event.endswith("\n\n")
    name, data, *rest = event.removesuffix("\n\n").split("\n")
    assert name == "event: error"
    assert rest == []
    reported = json.loads(data.removeprefix("data: "))
    match family:
        case Family.OPENAI:
            assert reported["error"]["code"] == error.code
        case Family.RESPONSES:
            assert reported == {
                "type": "error",
                "sequence_number": 7,
                "code": error.code,
                "message": str(error),
                "param": None,
            }
        case Family.ANTHROPIC:
            assert reported == json.loads(error_body(error, family))


def test_keep_alive_is_a_comment_or_anthropics_ping() -> None:
    assert keep_alive(Family.OPENAI) == keep_alive(Family.RESPONSES) == b": ping\n\n"
    assert keep_alive(Family.ANTHROPIC) == b'event: ping\ndata: {"type": "ping"}\n\n'


def test_only_temporary_errors_have_retry_after() -> None:
    assert (b"retry-after", b"5") in headers(NoEngine("coder", 5))
    assert [name for name, _ in headers(GatewayFailed())] == [b"content-type"]


@pytest.mark.parametrize("error", [MissingKey(), WrongKey()])
def test_only_a_refused_key_has_www_authenticate(error: FleetError) -> None:
    assert (b"www-authenticate", b"Bearer") in headers(error)
    assert b"www-authenticate" not in dict(headers(NoEngine("coder", 5)))
