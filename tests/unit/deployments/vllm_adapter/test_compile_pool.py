"""The threads that compile grammars: none that is stuck keeps another request waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from qwenfleet.deployments.vllm_adapter.compile_pool import (
    MOST_STUCK,
    CompilePool,
    CompileTimeout,
    PoolState,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def stick(release: threading.Event) -> Callable[[], str]:
    """A grammar that compiles until the end of the test."""

    def compile_forever() -> str:
        release.wait(60)
        return "late"

    return compile_forever


def wait_until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.002)


def test_grammars_compile_and_their_errors_reach_their_own_request() -> None:
    pool = CompilePool(2)
    good, bad = pool.submit(lambda text: text * 2, "ab"), pool.submit(int, "x")
    assert good.result(20) == "abab"
    with pytest.raises(ValueError, match="invalid literal"):
        bad.result(20)
    assert pool.state()[:3] == (0.0, 0, 2)


def test_a_stuck_grammar_fails_its_request_and_the_next_one_gets_a_thread(
    clock: Clock, stick: Callable[[], str]
) -> None:
    pool = CompilePool(1, limit_s=30, clock=clock)
    stuck = pool.submit(stick)
    wait_until(lambda: stuck.running())
    next_one = pool.submit(lambda: "compiled")
    clock.now += 29
    assert not stuck.done()
    assert not next_one.done()
    assert pool.state() == PoolState(oldest_s=29, stuck=0, done=0, longest_s=0.0)
    clock.now += 2
    assert stuck.done()
    assert next_one.result(20) == "compiled"
    with pytest.raises(CompileTimeout, match="within 30 s"):
        stuck.result()
    assert pool.state().stuck == 1


def test_a_request_in_the_queue_finds_the_stuck_one_although_its_own_request_has_left(
    clock: Clock, stick: Callable[[], str]
) -> None:
    pool = CompilePool(1, limit_s=30, clock=clock)
    left = pool.submit(stick)
    wait_until(lambda: left.running())
    queued = pool.submit(lambda: "compiled")
    clock.now += 31
    queued.done()  # the scheduler asks for it in each step
    assert queued.result(20) == "compiled"


def test_a_stuck_grammar_that_ends_after_all_is_forgotten_and_the_pool_keeps_its_size(
    clock: Clock, stick: Callable[[], str], release: threading.Event
) -> None:
    pool = CompilePool(1, limit_s=30, clock=clock)
    stuck = pool.submit(stick)
    wait_until(lambda: stuck.running())
    clock.now += 31
    assert stuck.done()
    release.set()
    wait_until(lambda: pool.state().stuck == 0)
    assert pool._threads == 1
    assert pool.submit(lambda: "compiled").result(20) == "compiled"


def test_stuck_threads_are_replaced_only_so_often(clock: Clock, stick: Callable[[], str]) -> None:
    pool = CompilePool(1, limit_s=30, clock=clock)
    for _ in range(MOST_STUCK):
        stuck = pool.submit(stick)
        wait_until(stuck.running)
        clock.now += 31
        assert stuck.done()
    last = pool.submit(stick)
    wait_until(last.running)
    clock.now += 31
    assert last.done()
    waits = pool.submit(lambda: "compiled")
    clock.now += 40
    assert not waits.done()
    assert pool.state()[:2] == (40, MOST_STUCK + 1)


def test_the_longest_compilation_is_reported_once(clock: Clock) -> None:
    pool = CompilePool(1, clock=clock)

    def compile_for_three() -> None:
        clock.now += 3

    pool.submit(compile_for_three).result(20)
    wait_until(lambda: pool._done == 1)
    assert pool.state() == PoolState(0.0, 0, 1, 3.0)
    assert pool.state() == PoolState(0.0, 0, 1, 0.0)


def test_closing_cancels_what_waits_and_waits_for_nothing(stick: Callable[[], str]) -> None:
    pool = CompilePool(1)
    running = pool.submit(stick)
    wait_until(running.running)
    queued = pool.submit(stick)
    pool.shutdown(wait=True, cancel_futures=True)
    assert queued.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(stick)
