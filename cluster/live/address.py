"""Reader for an address that serves metrics in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import urllib3

from qwenfleet.cluster.errors import ConfigError, MetricsError

TIMEOUT_S: Final = 3.0
"""Timeout for the whole answer; Ray's agent took 0.06 s for 0.6 MB."""
MAX_BYTES: Final = 64 * 2**20
"""A hundred times the answer of a laptop fleet's agent."""
_CHUNK_BYTES: Final = 2**16

_POOL: Final = urllib3.PoolManager(retries=False)
"""Ignores the environment's proxies, which cannot reach this machine's own ports."""


def checked(url: str) -> str:
    """Check a metrics address from the command line, and add /metrics if it has no path. Raises
    ConfigError."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number
        is_url = False
    if not is_url:
        raise ConfigError(
            f"'{url}' is not a metrics address", "Write it like http://10.0.0.7:8080/metrics."
        )
    return url if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/metrics"


def read(
    url: str, timeout_s: float = TIMEOUT_S, clock: Callable[[], float] = time.monotonic
) -> str:
    """The text at `url`. Raises MetricsError."""
    deadline = clock() + timeout_s
    try:
        answer = _POOL.request(
            "GET",
            url,
            timeout=urllib3.Timeout(total=timeout_s),
            preload_content=False,
            redirect=False,
            headers={"Accept": "text/plain;version=0.0.4"},
        )
        try:
            if answer.status != 200:
                raise MetricsError(
                    url,
                    f"answers with status {answer.status}",
                    "Use the address that `qwenfleet status` prints after 'metrics at'.",
                )
            body = bytearray()
            while chunk := answer.read1(_CHUNK_BYTES):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise MetricsError(
                        url,
                        f"sends more than {MAX_BYTES >> 20} MiB",
                        "Check that it is a metrics address.",
                    )
                if clock() > deadline:
                    raise _late(url, timeout_s)
        finally:
            answer.close()
    except urllib3.exceptions.NewConnectionError as error:  # a subclass of TimeoutError
        raise MetricsError(url, _reason(error), "Check that the fleet is running.") from error
    except urllib3.exceptions.TimeoutError as error:
        raise _late(url, timeout_s) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise MetricsError(url, _reason(error), "Check that the fleet is running.") from error
    return _text(url, bytes(body))


def _text(url: str, body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _foreign(url) from error
    first = text.lstrip()[:1]
    if first and first != "#" and not (first.isalpha() or first in "_:"):
        raise _foreign(url)
    return text


def _foreign(url: str) -> MetricsError:
    return MetricsError(
        url,
        "answers with text that is not in Prometheus' format",
        "Use the address that `qwenfleet status` prints after 'metrics at'.",
    )


def _late(url: str, timeout_s: float) -> MetricsError:
    return MetricsError(
        url,
        f"did not answer within {timeout_s:g} s",
        "The machine may be busy, or a firewall may drop the traffic.",
    )


def _reason(error: BaseException) -> str:
    """The operating system's error, without urllib3's text around it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ConnectionRefusedError):
            return "refuses the connection"
        if isinstance(inner, OSError) and inner.strerror:
            return f"cannot be reached ({inner.strerror})"
        inner = inner.__cause__ or inner.__context__
    return f"cannot be read ({type(error).__name__})"
