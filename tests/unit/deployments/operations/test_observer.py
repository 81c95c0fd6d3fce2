"""Tests the launcher's readings of its fleet while Ray may not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import serve as ray_serve

from qwenfleet.deployments.operations import observer as module
from qwenfleet.deployments.operations.observer import SILENT_S, Observer, Reading
from qwenfleet.deployments.operations.readiness import Readiness
from qwenfleet.deployments.registry import client
from qwenfleet.deployments.registry.records import Snapshot

READING = Reading(Snapshot((), (), ()), Readiness(200))
PATIENCE_S = 20


def test_readings_are_handed_over_until_one_fails(clock: Any) -> None:
    answers: Iterator[Reading | Exception] = iter([READING, ValueError("boom")])

    def read() -> Reading:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    observer = Observer(read, lambda: 0.0, clock)
    assert observer.next(PATIENCE_S) is READING
    with pytest.raises(ValueError, match="boom"):
        observer.next(PATIENCE_S)


def test_stopped_observer_calls_ray_no_more() -> None:
    """A call after Ray's end would start another Ray."""
    calls = 0

    def read() -> Reading:
        nonlocal calls
        calls += 1
        return READING

    observer = Observer(read, lambda: 0.0)
    observer.next(PATIENCE_S)
    observer.stop()
    assert not observer._thread.is_alive()
    before = calls
    observer.next(0.05)
    assert calls == before


def test_ray_that_does_not_answer_is_reported_once_and_when_it_answers_again(clock: Any) -> None:
    answers = threading.Semaphore(0)

    def read() -> Reading:
        answers.acquire()
        return READING

    observer = Observer(read, lambda: 0.0, clock)
    assert observer.next(0.0) is None
    assert observer.news() == []
    clock.advance(SILENT_S + 1)
    (silent,) = observer.news()
    assert silent.startswith("Ray has not answered for 15 s")
    assert observer.news() == []
    answers.release()
    assert observer.next(PATIENCE_S) is READING
    assert observer.news() == ["Ray answers again"]


@pytest.mark.parametrize("error", [ValueError("none"), ray.exceptions.ActorDiedError()])
def test_serve_is_asked_when_the_registry_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def away(fleet: str) -> Snapshot:
        raise error

    monkeypatch.setattr(client, "read", away)
    monkeypatch.setattr(module, "probe", lambda url: Readiness(200))
    monkeypatch.setattr(module, "serve_view", lambda fleet: (fleet,))
    reading = module.read("demo", "http://127.0.0.1:1", wants_serve=False)
    assert reading.snapshot is None
    assert reading.deployments == ("demo",)  # type: ignore[comparison-overlap] # a fake
    monkeypatch.setattr(client, "read", lambda fleet: READING.snapshot)
    assert module.read("demo", "http://127.0.0.1:1", wants_serve=False) == READING


def test_serve_that_does_not_answer_has_no_view(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> Any:
        raise ray.exceptions.RayActorError

    monkeypatch.setattr(ray_serve, "status", away)
    assert module.serve_view("demo") == ()
