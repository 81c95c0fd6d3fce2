"""Thread for one call into Ray, which may not return while the head of its cluster is away.

It is not a thread of a pool: a pool's threads are shared with calls that must not wait, and the
interpreter would wait for them at its exit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Start the call in a thread of its own and return its result to come."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="ray call", daemon=True).start()
    return future
