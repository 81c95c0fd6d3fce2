"""Ends Serve and Ray in this process within limits, also when a part of Ray is dead."""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from types import FrameType
from typing import Final

import ray
from ray import serve as ray_serve

from qwenfleet.deployments.operations import farewell
from qwenfleet.deployments.operations.parts import VITAL, PartReader
from qwenfleet.deployments.registry.call_thread import in_thread

REQUESTS_S: Final = 20.0
"""Gateways give their requests 5 s."""
SERVE_S: Final = 45.0
"""Serve's own limit is 30 s; it drains the engines meanwhile."""
RAY_S: Final = 20.0
POLL_S: Final = 0.25


class Ending:
    """The end of one fleet. Ray's calls run in threads, since some never return."""

    def __init__(self, parts: PartReader, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._clock = clock
        self._is_hurried = False
        self.is_lost = False
        """Whether Ray has lost a part that it cannot end without."""
        self.is_done = True
        """Whether Serve and Ray have ended by themselves."""

    def hurry(self, number: int, frame: FrameType | None) -> None:
        """Take a second signal: what still runs is killed."""
        self._is_hurried = True

    def run(self, fleet: str, status: int) -> None:
        """End requests, Serve and Ray, as far as they can. `status` is this process's exit
        status."""
        if not ray.is_initialized():
            return
        if not self.is_lost:  # engines end well, too, if this fails
            self._ends(partial(farewell.end_requests, fleet), REQUESTS_S, self._is_whole)
        self.is_done = (
            not (self.is_lost or self._is_hurried)
            and self._ends(_shut_down_serve, SERVE_S, self._is_whole)
            and self._ends(ray.shutdown, RAY_S, lambda: True)
        )
        if not self.is_done:  # at exit, Ray would wait for what is dead, and print how it failed
            atexit.unregister(ray.shutdown)
            atexit.register(os._exit, status)

    def _ends(self, call: Callable[[], None], limit_s: float, may_end: Callable[[], bool]) -> bool:
        """Whether the call returns in time."""
        give_up_at = self._clock() + limit_s
        future = in_thread(call)
        while not future.done():
            if self._is_hurried or self._clock() > give_up_at or not may_end():
                return False
            wait([future], timeout=POLL_S)
        return future.exception() is None

    def _is_whole(self) -> bool:
        reading = self._parts.read()
        return all(part in reading for part in VITAL)


def _shut_down_serve() -> None:
    try:
        ray_serve.shutdown()
    except (ray.exceptions.RayError, RuntimeError):
        logging.getLogger(__name__).info("Serve had already stopped")
