"""Readiness of a fleet as its clients see it: what its address answers to `/health/ready`."""

from __future__ import annotations

import http.client
import json
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

TIMEOUT_S: Final = 2.0


@dataclass(frozen=True)
class Readiness:
    """One answer."""

    status: int = 0
    """The HTTP status; 0 if nothing answered."""
    code: str = ""
    """The error's code, such as `no_engine`."""

    @property
    def is_ready(self) -> bool:
        return self.status == 200

    def __str__(self) -> str:
        if self.status == 0:
            return "does not answer"
        return "ready" if self.is_ready else f"{self.status} {self.code}".rstrip()


def probe(url: str, timeout_s: float = TIMEOUT_S) -> Readiness:
    """Ask the fleet at `url` whether it answers requests."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        return Readiness(response.status, _code(response.read()))
    return Readiness()


def _code(body: bytes) -> str:
    """Return the code of an error response; empty if it has none."""
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(body)["error"]["code"])
    return ""
