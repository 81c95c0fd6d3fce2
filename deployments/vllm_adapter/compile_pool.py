"""CompilePool: the threads that compile a core's grammars, none of which can keep the others
waiting.

vLLM's own pool has a fixed number of threads, and a thread cannot be ended: a grammar that never
compiles takes one for good, and every later request with a grammar waits for it without an end.
Here such a grammar fails its own request, and another thread takes the place of its thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Final, NamedTuple

LIMIT_S: Final = 30.0
"""Time to compile one grammar. A gateway allows 2 s of CPU time (`gateway.grammar.compile_s`), and
20 s at most; xgrammar uses up to 8 threads here."""
MOST_STUCK: Final = 8
"""Threads that are replaced, at most: each uses a core of the CPU until its grammar ends."""


class CompileTimeout(ValueError):
    """A grammar took longer than the limit; it fails its own request."""


class PoolState(NamedTuple):
    """What an engine host sees of the pool. Times in seconds."""

    oldest_s: float
    """Age of the oldest request that waits for its grammar, in the queue or in a thread."""
    stuck: int
    """Threads whose grammar is beyond its limit and still compiles."""
    done: int
    """Grammars compiled since the start of the core."""
    longest_s: float
    """The longest of those that were compiled since the last look."""


class _Compile(Future[Any]):
    """A future that fails by itself at the limit: the scheduler asks each one in each step."""

    def __init__(self, pool: CompilePool, work: Callable[[], Any], now: float) -> None:
        super().__init__()
        self._pool = pool
        self.work = work
        self.came_at = now
        self.began_at: float | None = None

    def done(self) -> bool:
        if not super().done():
            self._pool.look()
        return super().done()


class CompilePool:
    """Has the part of ThreadPoolExecutor's interface that vLLM's StructuredOutputManager uses."""

    def __init__(
        self,
        num_threads: int,
        limit_s: float = LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_threads = num_threads
        self._limit_s = limit_s
        self._clock = clock
        self._lock = threading.Condition(threading.RLock())
        self._queue: deque[_Compile] = deque()
        self._running: dict[threading.Thread, _Compile] = {}
        self._stuck: dict[threading.Thread, bool] = {}
        """Threads that were given up, and whether another took the place of each."""
        self._threads = 0
        """Threads that take work; stuck ones do not count."""
        self._idle = 0
        self._is_closed = False
        self._done = 0
        self._longest_s = 0.0

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Compile in a thread; the future fails after the limit."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the pool is closed")
            future = _Compile(self, lambda: work(*arguments), self._clock())
            self._queue.append(future)
            self.look()
            if len(self._queue) > self._idle:
                self._add_thread()
            self._lock.notify()
        return future

    def look(self) -> None:
        """Give up on grammars beyond their limit, and replace their threads."""
        with self._lock:
            now = self._clock()
            for thread, future in list(self._running.items()):
                if now - (future.began_at or now) > self._limit_s:
                    del self._running[thread]
                    problem = f"the grammar did not compile within {self._limit_s:g} s"
                    future.set_exception(CompileTimeout(problem))
                    self._stuck[thread] = len(self._stuck) < MOST_STUCK
                    if self._stuck[thread]:
                        self._threads -= 1
                        self._add_thread()

    def state(self) -> PoolState:
        """Report to the host, and begin a new `longest_s`."""
        with self._lock:
            self.look()
            now = self._clock()
            waiting = [*self._queue, *self._running.values()]
            oldest_s = max((now - future.came_at for future in waiting), default=0.0)
            longest_s, self._longest_s = self._longest_s, 0.0
            return PoolState(oldest_s, len(self._stuck), self._done, longest_s)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work. Never waits for a grammar: the threads are daemons."""
        with self._lock:
            self._is_closed = True
            if cancel_futures:
                for future in self._queue:
                    future.cancel()
                self._queue.clear()
            self._lock.notify_all()

    def _add_thread(self) -> None:
        if self._threads < self._num_threads:
            self._threads += 1
            threading.Thread(target=self._work, name="grammar", daemon=True).start()

    def _work(self) -> None:
        thread = threading.current_thread()
        while (future := self._take(thread)) is not None:
            try:
                result, error = future.work(), None
            except (Exception, CancelledError) as raised:
                result, error = None, raised
            if not self._finish(thread, future, result, error):
                return

    def _take(self, thread: threading.Thread) -> _Compile | None:
        """Wait for work; None once the pool is closed."""
        with self._lock:
            while True:
                while not self._queue:
                    if self._is_closed:
                        return None
                    self._idle += 1
                    self._lock.wait()
                    self._idle -= 1
                future = self._queue.popleft()
                if future.set_running_or_notify_cancel():
                    future.began_at = self._clock()
                    self._running[thread] = future
                    return future

    def _finish(
        self, thread: threading.Thread, future: _Compile, result: Any, error: BaseException | None
    ) -> bool:
        """Settle a future; False for a thread that was given up and replaced meanwhile."""
        with self._lock:
            if thread in self._stuck:
                return not self._stuck.pop(thread)
            del self._running[thread]
            self._done += 1
            self._longest_s = max(self._longest_s, self._clock() - (future.began_at or 0.0))
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            return True
