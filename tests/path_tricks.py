"""Targets that try to reach a route that is not served, or to avoid the key: all were tried."""

from __future__ import annotations

from typing import Final

TRICKS: Final = (
    "//metrics",
    "/metrics/",
    "/METRICS",
    "/%6detrics",
    "/metrics%00",
    "/metrics%0d%0ax-api-key:%20a",
    "/v1/../metrics",
    "/v1/%2e%2e/metrics",
    "/v1/%252e%252e/metrics",
    "/v1/..%2fmetrics",
    "/./metrics",
    "/v1/models;/../../metrics",
    "/health/live/../../metrics",
    "/health/live/%2e%2e/%2e%2e/v1/models",
    "/health/live%2f..%2f..%2fv1/models",
    "/health/live;/v1/models",
    "/health/live\\..\\..\\v1\\models",
    "/health//live/../../v1/models",
    "/v1/chat/completions/../../../scale_elastic_ep",
    "http://fleet/metrics",
    "http://fleet/health/live/../../v1/models",
    "http://127.0.0.1:8265/api/version",
    "*",
)
METHODS: Final = ("GET", "POST", "HEAD", "OPTIONS")
NOT_SERVED: Final = frozenset({400, 401, 404, 405, 501})
"""405 and 501: the HTTP server itself refuses the request."""


def request(method: str, target: str, *lines: str) -> bytes:
    """Return the raw request for a target."""
    fields = ["Host: fleet", "Connection: close", *lines, "Content-Length: 2"]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *fields, "", "{}"]).encode()
