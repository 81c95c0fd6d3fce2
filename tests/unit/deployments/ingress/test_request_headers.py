"""Tests what clients can tell vLLM and Serve in headers."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.deployments.ingress.field_errors import FieldError
from qwenfleet.deployments.ingress.request_headers import checked


def headers_of(*pairs: tuple[bytes, bytes]) -> Any:
    return checked({"type": "http", "headers": list(pairs)}, 64)["headers"]


@pytest.mark.parametrize(
    "name",
    [
        b"x-vllm-priority",
        b"x-data-parallel-rank",
        b"x-request-timeout-seconds",
        b"endpoint-load-metrics-format",
    ],
)
def test_headers_that_order_or_place_requests_are_dropped(name: bytes) -> None:
    assert headers_of((b"host", b"x"), (name, b"-5"), (b"accept", b"*/*")) == [
        (b"host", b"x"),
        (b"accept", b"*/*"),
    ]


@pytest.mark.parametrize("name", [b"x-request-id", b"x-session-id"])
def test_a_name_in_a_header_is_short_and_printable(name: bytes) -> None:
    assert headers_of((name, b"a-1_b.c:7")) == [(name, b"a-1_b.c:7")]
    for value in (b"x" * 65, b"\xff\xfe", b"a\x01b", "é".encode()):
        with pytest.raises(FieldError, match=name.decode()) as caught:
            headers_of((name, value))
        assert caught.value.status == 400


def test_of_a_repeated_header_each_is_checked() -> None:
    with pytest.raises(FieldError):
        headers_of((b"x-request-id", b"a"), (b"x-request-id", b"x" * 99))
