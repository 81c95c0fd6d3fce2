"""Tests the choice of the URL that a job prints, and the check that it answers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
from ray import serve as ray_serve

from qwenfleet.cluster.config.fleet import GatewayConfig
from qwenfleet.cluster.errors import DeployFailed
from qwenfleet.deployments.operations import entrance
from qwenfleet.deployments.operations.entrance import Listening
from qwenfleet.deployments.operations.readiness import Readiness

NODES = {"a": "10.0.0.1", "b": "10.0.0.2"}


def listening(
    host: str = "0.0.0.0", *, has_tls: bool = False, proxies: dict[str, str] = NODES
) -> Listening:
    return Listening(host, 8000, has_tls, proxies)


@pytest.mark.parametrize(
    ("host", "gateways", "own", "url"),
    [
        ("0.0.0.0", ["a", "b"], "b", "http://10.0.0.2:8000"),
        ("0.0.0.0", ["a"], "b", "http://10.0.0.1:8000"),
        ("::", ["a"], "elsewhere", "http://10.0.0.1:8000"),
        ("0.0.0.0", [], "b", "http://10.0.0.2:8000"),
        ("10.0.0.9", ["a"], "a", "http://10.0.0.9:8000"),
        ("coder.example", ["a"], "a", "http://coder.example:8000"),
        ("127.0.0.1", ["a", "b"], "b", "http://127.0.0.1:8000"),
        ("::1", ["a"], "a", "http://[::1]:8000"),
    ],
)
def test_url_is_an_address_that_answers(host: str, gateways: list[str], own: str, url: str) -> None:
    served = listening(host)
    assert served.url(served.node(gateways, own)) == url


def test_loopback_url_is_that_of_a_node_with_a_gateway() -> None:
    served = listening("127.0.0.1")
    assert served.is_local
    assert [served.node(["b"], own) for own in ("a", "b", "elsewhere")] == ["b"] * 3


def test_ipv6_node_and_tls_are_part_of_the_url() -> None:
    served = listening("::", has_tls=True, proxies={"a": "fd00::7"})
    assert served.url("a") == "https://[fd00::7]:8000"


def test_settings_without_effect_are_named() -> None:
    assert listening("127.0.0.1").differences(GatewayConfig()) == ""
    sentence = listening("127.0.0.1").differences(GatewayConfig(host="0.0.0.0", port=9000))
    for part in ("listens on 127.0.0.1 port 8000", "gateway.host 0.0.0.0", "serve shutdown"):
        assert part in sentence


def serve_has(monkeypatch: pytest.MonkeyPatch, host: str | None, proxies: list[str]) -> None:
    options = SimpleNamespace(host=host, port=8000, ssl_certfile=None)
    controller = SimpleNamespace(get_http_config=SimpleNamespace(remote=lambda: options))
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: controller)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    nodes = [{"NodeID": node, "NodeManagerAddress": ip} for node, ip in NODES.items()]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    status = SimpleNamespace(proxies=dict.fromkeys(proxies, "HEALTHY"))
    monkeypatch.setattr(ray_serve, "status", lambda: status)


def test_serve_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_has(monkeypatch, "127.0.0.1", ["a", "dead"])
    assert entrance.read() == listening("127.0.0.1", proxies={"a": "10.0.0.1"})


@pytest.mark.parametrize(("host", "proxies"), [(None, ["a"]), ("0.0.0.0", [])])
def test_serve_without_proxies_is_refused(
    monkeypatch: pytest.MonkeyPatch, host: str | None, proxies: list[str]
) -> None:
    serve_has(monkeypatch, host, proxies)
    with pytest.raises(DeployFailed, match="has no HTTP proxy"):
        entrance.read()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_ready_fleet_is_awaited_for_a_limited_time() -> None:
    clock = Clock()
    answers = iter([Readiness(), Readiness(503, "model_loading"), Readiness(200)])
    entrance.await_answer("u", ask=lambda url: next(answers), clock=clock, sleep=clock.sleep)
    assert clock.now == 2 * entrance.POLL_S


@pytest.mark.parametrize(
    ("answer", "words"),
    [(Readiness(), "does not answer"), (Readiness(404), "answers 404")],
)
def test_address_that_does_not_answer_ends_the_job(answer: Readiness, words: str) -> None:
    clock = Clock()
    with pytest.raises(DeployFailed, match=f"u/health/ready {words}"):
        entrance.await_answer("u", ask=lambda url: answer, clock=clock, sleep=clock.sleep)
    assert clock.now > entrance.PATIENCE_S


def test_only_what_this_process_reaches_is_asked() -> None:
    assert listening().can_ask("a", "b")
    assert listening("127.0.0.1").can_ask("a", "a")
    assert not listening("127.0.0.1").can_ask("a", "b")
    assert not listening(has_tls=True).can_ask("a", "a")
