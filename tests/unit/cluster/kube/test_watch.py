"""Reflector over real HTTP: what it does after a lost, expired, silent or refused watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.kube import client as kube
from qwenfleet.cluster.kube.query import Query
from qwenfleet.cluster.kube.watch import (
    BACKOFF_S,
    REFUSED_S,
    RELIST_S,
    SILENCE_S,
    STALE_S,
    Objects,
    Reflector,
)

PATIENCE_S = 10.0
NODES = Query("nodes")


def node(name: str, *taints: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"taints": [{"key": key} for key in taints]}}


class Live:
    """A reflector of the API server's nodes, in its own thread."""

    def __init__(self, *, silence_s: float = 5.0) -> None:
        client = kube.connect()
        self.seen: list[Objects | None] = []
        self.waits: list[float] = []

        class Source:
            def list(self) -> tuple[list[dict[str, Any]], str]:
                return client.list(NODES)

            def watch(self, version: str) -> Iterator[dict[str, Any]]:
                return client.watch(NODES, version, lasts_s=30, silence_s=silence_s)

        self.reflector = Reflector("nodes", Source(), self.seen.append, sleep=self._sleep)
        self.thread = threading.Thread(target=self.reflector.run, daemon=True)
        self.thread.start()

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        time.sleep(0.01)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.01)

    def taints(self, name: str) -> list[str]:
        objects = self.seen[-1] if self.seen else None
        tree = (objects or {}).get(name)
        return [] if tree is None else [taint["key"] for taint in tree["spec"]["taints"]]


@pytest.fixture
def live(kubernetes_api: Any) -> Iterator[Callable[..., Live]]:
    lives: list[Live] = []

    def start(**options: Any) -> Live:
        lives.append(Live(**options))
        lives[-1].until(lambda: kubernetes_api.watches() == 1)
        return lives[-1]

    yield start
    for one in lives:
        one.reflector.is_stopped = True
    kubernetes_api.is_frozen = False
    kubernetes_api.cut()
    for one in lives:
        one.thread.join(PATIENCE_S)
        assert not one.thread.is_alive()


def test_changes_and_deletions_are_seen(kubernetes_api: Any, live: Callable[..., Live]) -> None:
    kubernetes_api.put("nodes", node("n1"))
    one = live()
    kubernetes_api.put("nodes", node("n1", "terminating-soon"))
    one.until(lambda: one.taints("n1") == ["terminating-soon"])
    kubernetes_api.delete("nodes", "n1")
    one.until(lambda: one.seen[-1] == {})
    assert kubernetes_api.verbs("nodes") == ["list", "watch"]


def test_an_interrupted_watch_resumes_where_it_was(
    kubernetes_api: Any, live: Callable[..., Live]
) -> None:
    kubernetes_api.put("nodes", node("n1"))
    one = live()
    kubernetes_api.put("nodes", node("n1", "first"))
    one.until(lambda: one.taints("n1") == ["first"])
    version = kubernetes_api.get("nodes", "n1")["metadata"]["resourceVersion"]
    kubernetes_api.cut()
    kubernetes_api.put("nodes", node("n1", "while it was away"))
    one.until(lambda: one.taints("n1") == ["while it was away"])
    assert kubernetes_api.verbs("nodes") == ["list", "watch", "watch"]
    assert kubernetes_api.requests[-1][2]["resourceVersion"] == version
    assert one.waits == [BACKOFF_S[0]]


def test_an_expired_version_is_followed_by_a_list(
    kubernetes_api: Any, live: Callable[..., Live]
) -> None:
    kubernetes_api.put("nodes", node("n1"))
    one = live()
    kubernetes_api.compact()
    kubernetes_api.cut()
    asked = ["list", "watch", "watch", "list", "watch"]
    one.until(lambda: kubernetes_api.verbs("nodes") == asked and kubernetes_api.watches() == 1)
    kubernetes_api.delete("nodes", "n1")
    kubernetes_api.put("nodes", node("n2"))
    one.until(lambda: list(one.seen[-1] or ()) == ["n2"])


def test_a_bookmark_saves_the_list(kubernetes_api: Any, live: Callable[..., Live]) -> None:
    kubernetes_api.put("nodes", node("n1"))
    one = live()
    before = len(one.seen)
    kubernetes_api.compact()
    kubernetes_api.bookmark()
    one.until(lambda: int(one.reflector._version) > 101)
    kubernetes_api.cut()
    one.until(lambda: len(kubernetes_api.verbs("nodes")) == 3)
    assert kubernetes_api.verbs("nodes") == ["list", "watch", "watch"]
    assert len(one.seen) == before, "nothing changed"


def test_a_silent_connection_is_closed(kubernetes_api: Any, live: Callable[..., Live]) -> None:
    kubernetes_api.put("nodes", node("n1"))
    one = live(silence_s=0.3)
    kubernetes_api.is_frozen = True
    kubernetes_api.put("nodes", node("n1", "unheard"))
    one.until(lambda: bool(one.waits))
    kubernetes_api.is_frozen = False
    one.until(lambda: one.taints("n1") == ["unheard"])


class Scripted:
    """A scripted source, and a clock."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.calls: list[str] = []
        self.now = 1000.0
        self.waits: list[float] = []
        self.seen: list[Objects | None] = []
        self.reflector = Reflector(
            "nodes", self, self.seen.append, clock=lambda: self.now, sleep=self.sleep
        )

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def list(self) -> tuple[list[dict[str, Any]], str]:
        self.calls.append("list")
        found: tuple[list[dict[str, Any]], str] = self._next()
        return found

    def watch(self, version: str) -> Iterator[dict[str, Any]]:
        self.calls.append(f"watch {version}")
        yield from self._next()

    def _next(self) -> Any:
        step = self.script.pop(0)
        if isinstance(step, tuple) and isinstance(step[0], float):
            self.now += step[0]
            step = step[1]
        if isinstance(step, Exception):
            raise step
        return step

    def run(self) -> None:
        while self.script:
            self.reflector.step()


def refused(status: int | None) -> KubernetesError:
    return KubernetesError("refused", "wait", status)


LISTED = ([node("n1")], "7")


def test_unconfirmed_objects_become_unknown_and_are_listed_when_the_server_is_back() -> None:
    away = [refused(None)] * 20
    scripted = Scripted(LISTED, *away, LISTED)
    scripted.run()
    unknown = scripted.seen.index(None)
    assert unknown == 1, "reported once"
    assert scripted.seen[-1] == {"n1": node("n1")}
    assert scripted.calls[0] == "list"
    lists = [index for index, call in enumerate(scripted.calls) if call == "list"]
    waited_s = sum(scripted.waits[: lists[1] - 1])
    assert waited_s >= SILENCE_S, "until then it went on from where it was"
    assert sum(scripted.waits) > STALE_S


def test_waits_grow_and_are_reset_by_an_answer() -> None:
    scripted = Scripted(LISTED, *[refused(None)] * 6, [], (2.0, []), refused(None))
    event = {"type": "MODIFIED", "object": {"metadata": {"name": "n1", "resourceVersion": "8"}}}
    scripted.script[8] = (2.0, [event])
    scripted.run()
    assert scripted.waits[:6] == [*BACKOFF_S, BACKOFF_S[-1]]
    assert scripted.waits[-1] == BACKOFF_S[0]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_request_is_not_repeated_soon(status: int) -> None:
    scripted = Scripted(refused(status), refused(status), LISTED)
    scripted.run()
    assert scripted.waits == [REFUSED_S, REFUSED_S]
    assert scripted.seen == [{"n1": node("n1")}]


def test_a_server_that_ends_every_watch_at_once_is_asked_once_a_second() -> None:
    scripted = Scripted(LISTED, [], [], [])
    scripted.run()
    assert scripted.waits == [BACKOFF_S[0]] * 3


def test_a_server_that_rejects_every_version_is_listed_once_a_second() -> None:
    scripted = Scripted(LISTED, refused(410), LISTED, refused(410), LISTED)
    scripted.run()
    assert scripted.calls == ["list", "watch 7", "list", "watch 7", "list"]
    assert scripted.waits == [BACKOFF_S[0]] * 2


def test_an_old_list_is_repeated_even_while_the_watch_works() -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
    quiet = [(100.0, [bookmark])] * 10
    scripted = Scripted(LISTED, *quiet, LISTED)
    scripted.run()
    assert scripted.calls == ["list", "watch 7", *["watch 9"] * 9, "list"]
    assert RELIST_S < 10 * 100


def test_watches_without_events_do_not_confirm_objects() -> None:
    """A middlebox may answer every watch with an empty one."""
    scripted = Scripted(LISTED, (SILENCE_S, []), LISTED)
    scripted.run()
    assert scripted.calls == ["list", "watch 7", "list"]


def test_an_unexpected_object_does_not_end_the_thread() -> None:
    scripted = Scripted(([{"metadata": {}}], "7"), LISTED)

    def see(objects: Objects | None) -> None:
        scripted.seen.append(objects)
        scripted.reflector.is_stopped = True

    scripted.reflector.see = see
    scripted.reflector.run()
    assert scripted.calls == ["list", "list"]
    assert scripted.waits == [REFUSED_S]
