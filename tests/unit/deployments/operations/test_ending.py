"""Tests that the end of a fleet is bounded, whatever Ray does."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import serve as ray_serve

from qwenfleet.deployments.operations import ending as module
from qwenfleet.deployments.operations import farewell
from qwenfleet.deployments.operations.ending import Ending
from qwenfleet.deployments.operations.parts import GCS, RAYLET


class Reader:
    """Says which parts live."""

    def __init__(self) -> None:
        self.reading = {GCS: 1, RAYLET: 2}

    def read(self) -> Any:
        return self.reading


class Calls:
    """Ray and Serve, whose calls may hang, and what is registered for the exit."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.at_exit: list[Any] = []
        self.goes_on = threading.Event()
        self.hangs = ""

    def make(self, name: str) -> None:
        self.made.append(name)
        if name == self.hangs:
            self.goes_on.wait()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    calls = Calls()
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.make("ray"))
    monkeypatch.setattr(ray_serve, "shutdown", lambda: calls.make("serve"))
    monkeypatch.setattr(farewell, "end_requests", lambda fleet: calls.make("requests"))
    monkeypatch.setattr(atexit, "register", lambda *call: calls.at_exit.append(call))
    monkeypatch.setattr(module, "POLL_S", 0.01)
    yield calls
    calls.goes_on.set()


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def ending(reader: Reader, clock: Any) -> Ending:
    return Ending(reader, clock)  # type: ignore[arg-type] # a fake


def test_serve_ends_before_ray(calls: Calls, ending: Ending) -> None:
    ending.run("demo", 0)
    assert calls.made == ["requests", "serve", "ray"]
    assert ending.is_done
    assert calls.at_exit == []


def test_dead_ray_is_asked_for_nothing(calls: Calls, ending: Ending) -> None:
    ending.is_lost = True
    ending.run("demo", 1)
    assert calls.made == []
    assert not ending.is_done
    assert calls.at_exit == [(os._exit, 1)]


@pytest.mark.parametrize("hangs", ["requests", "serve", "ray"])
def test_second_signal_ends_the_wait(calls: Calls, ending: Ending, hangs: str) -> None:
    calls.hangs = hangs
    ending.hurry(signal.SIGINT, None)
    ending.run("demo", 0)
    assert not ending.is_done
    assert calls.at_exit == [(os._exit, 0)]


def test_ray_that_dies_meanwhile_ends_the_wait(
    calls: Calls, ending: Ending, reader: Reader
) -> None:
    calls.hangs = "serve"
    del reader.reading[RAYLET]
    ending.run("demo", 0)
    assert calls.made == ["requests", "serve"]
    assert not ending.is_done


def test_wait_is_bounded(
    calls: Calls, ending: Ending, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*_: Any, timeout: float) -> None:
        clock.advance(60)

    monkeypatch.setattr(module, "wait", wait)
    calls.hangs = "serve"
    ending.run("demo", 0)
    assert not ending.is_done


def test_serve_may_have_stopped_already(
    calls: Calls, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        raise RuntimeError("Serve is not running")

    monkeypatch.setattr(ray_serve, "shutdown", stopped)
    ending.run("demo", 0)
    assert calls.made == ["requests", "ray"]
    assert ending.is_done
