"""Reads a running fleet in a thread: calls into a Ray that has lost a part do not return."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.operations.failures import Deployed, deployed
from qwenfleet.deployments.operations.readiness import Readiness, probe
from qwenfleet.deployments.registry import client
from qwenfleet.deployments.registry.records import Snapshot

AWAY: Final = (*client.AWAY, RuntimeError, ConnectionError, ProtocolError, RayServeException)
STOP_S: Final = 2.0
SILENT_S: Final = 15.0
"""A Ray that answers nothing for this long is frozen or lost."""


@dataclass(frozen=True)
class Reading:
    """What the fleet's parts reported at one time."""

    snapshot: Snapshot | None
    """None while the registry does not answer."""
    readiness: Readiness
    deployments: tuple[Deployed, ...] = ()
    """What Serve reports; empty if it was not asked or did not answer."""


def read(fleet: str, url: str, *, wants_serve: bool) -> Reading:
    """Read the fleet. Serve is asked if the registry does not answer, or if wanted."""
    snapshot = None
    with suppress(*AWAY):
        snapshot = client.read(fleet)
    is_asked = wants_serve or snapshot is None
    return Reading(snapshot, probe(url), serve_view(fleet) if is_asked else ())


def serve_view(fleet: str) -> tuple[Deployed, ...]:
    """Return what Serve reports about the fleet's deployments; nothing if it does not answer."""
    with suppress(*AWAY):
        application = ray_serve.status().applications.get(fleet)
        return () if application is None else deployed(application)
    return ()


class Observer:
    """Repeats a reading in a thread, and hands over the latest."""

    def __init__(
        self,
        read: Callable[[], Reading],
        pause_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pause_s` is asked before each reading."""
        self._read = read
        self._pause_s = pause_s
        self._clock = clock
        self._readings: queue.SimpleQueue[Reading | Exception] = queue.SimpleQueue()
        self._heard_at = clock()
        self._was_silent = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="observer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the readings, before Ray ends. One that Ray does not answer is not waited for."""
        self._is_over.set()
        self._thread.join(STOP_S)

    def next(self, timeout_s: float) -> Reading | None:
        """Return the next reading; None if there is none in time. Raises what the reading did."""
        try:
            reading = self._readings.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(reading, Exception):
            raise reading
        self._heard_at = self._clock()
        return reading

    def news(self) -> list[str]:
        """Return a sentence when Ray stops answering, and when it answers again."""
        is_silent = self._clock() - self._heard_at > SILENT_S
        if is_silent == self._was_silent:
            return []
        self._was_silent = is_silent
        if is_silent:
            return [f"Ray has not answered for {SILENT_S:.0f} s: a part of it is frozen or lost"]
        return ["Ray answers again"]

    def _repeat(self) -> None:
        while not self._is_over.wait(self._pause_s()):
            try:
                self._readings.put(self._read())
            except Exception as error:  # the thread's edge: the launcher's thread raises it
                self._readings.put(error)
                return
