"""The Serve replica that this process is: when Serve stops it, and SIGTERM.

Neither has a public hook in Ray 2.60. Serve awaits `__del__` after the last request, so a gateway
would not know that it drains; Ray ends a worker at SIGTERM at once, with every stream.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

import ray._private.worker as ray_worker

logger = logging.getLogger(__name__)


def is_stopping() -> bool:
    """Whether Serve has begun to stop this replica (`Replica._shutting_down` in ray 2.60
    serve/_private/replica.py)."""
    return any(
        getattr(getattr(actor, "_replica_impl", None), "_shutting_down", False)
        for actor in ray_worker.global_worker.actors.values()
    )


def on_sigterm(loop: AbstractEventLoop, leave: Callable[[], object]) -> None:
    """Call `leave` on the loop at SIGTERM. The process then goes on.

    Ray's handler runs in the main thread, which `signal.signal` needs, and ours does not. It looks
    up this function when the signal comes (ray 2.60 _private/worker.py, `main_loop`).
    """

    def handle(*_: Any, **__: Any) -> None:
        loop.call_soon_threadsafe(leave)

    vars(ray_worker)["raise_sys_exit_with_custom_error_message"] = handle
