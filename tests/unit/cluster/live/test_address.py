"""A metrics address is read, or the failure is one sentence."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qwenfleet.cluster.errors import ConfigError, MetricsError
from qwenfleet.cluster.live import address
from qwenfleet.cluster.local.ports import free_ports


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("http://10.0.0.7:8080", "http://10.0.0.7:8080/metrics"),
        ("http://10.0.0.7:8080/", "http://10.0.0.7:8080/metrics"),
        ("https://node/metrics?x=1", "https://node/metrics?x=1"),
        ("http://[::1]:80/m", "http://[::1]:80/m"),
    ],
)
def test_the_default_path_of_an_address_is_metrics(typed: str, meant: str) -> None:
    assert address.checked(typed) == meant


@pytest.mark.parametrize(
    "typed", ["", "10.0.0.7:8080", "ftp://x/metrics", "http://", "http://x:port", "http://x:99999"]
)
def test_an_invalid_address_is_refused(typed: str) -> None:
    with pytest.raises(ConfigError, match="is not a metrics address"):
        address.checked(typed)


def test_the_whole_text_is_read(metrics_page: Any) -> None:
    metrics_page.body = "# HELP x é\nx 1\n".encode() * 20_000
    assert address.read(metrics_page.url) == metrics_page.body.decode()


@pytest.mark.parametrize("status", [301, 401, 404, 500])
def test_any_other_status_is_one_sentence(metrics_page: Any, status: int) -> None:
    metrics_page.status = status
    with pytest.raises(MetricsError) as caught:
        address.read(metrics_page.url)
    assert str(caught.value).startswith(f"{metrics_page.url} answers with status {status}. Use")


@pytest.mark.parametrize("body", [b"<html>", b'{"a": 1}', b"\xff\xfe\x00", b"\n  <x/>"])
def test_text_in_another_format_is_one_sentence(metrics_page: Any, body: bytes) -> None:
    metrics_page.body = body
    with pytest.raises(MetricsError, match="text that is not in Prometheus' format"):
        address.read(metrics_page.url)


def test_an_answer_larger_than_any_agents_is_refused(
    metrics_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "MAX_BYTES", 2**20)
    metrics_page.body = b"x 1\n" * 2**19
    with pytest.raises(MetricsError, match="sends more than 1 MiB"):
        address.read(metrics_page.url)


def test_a_port_without_a_listener_is_one_sentence() -> None:
    (port,) = free_ports(1, "127.0.0.1")
    with pytest.raises(
        MetricsError, match=r"refuses the connection\. Check that the fleet is running\."
    ):
        address.read(f"http://127.0.0.1:{port}/metrics")


def test_an_unknown_host_name_is_one_sentence() -> None:
    with pytest.raises(MetricsError, match="cannot be re"):
        address.read("http://no-such-host.invalid/metrics")


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"


def test_a_silent_server_times_out(dripping: str) -> None:
    began_at = time.monotonic()
    with pytest.raises(MetricsError, match=r"did not answer within 0\.2 s"):
        address.read(dripping, timeout_s=0.2)
    assert time.monotonic() - began_at < 5


def test_an_answer_that_trickles_times_out(metrics_page: Any) -> None:
    metrics_page.body = b"x 1\n" * 2**18
    ticks = iter(range(1000))
    with pytest.raises(MetricsError, match="did not answer within 3 s"):
        address.read(metrics_page.url, clock=lambda: float(next(ticks)))


def test_a_proxy_of_the_environment_is_not_used(
    metrics_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    metrics_page.body = b"x 1\n"
    assert address.read(metrics_page.url) == "x 1\n"
