"""The attempts that a host holds, their gateways, and which suspect may run."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.deployments.engine_host.attempts import Attempts, Session
from qwenfleet.deployments.engine_host.core import CoreStep
from qwenfleet.deployments.engine_host.learned_rate import ENOUGH
from qwenfleet.deployments.engine_host.rank_speed import SAMPLE_STEPS
from qwenfleet.deployments.wire.frames import Output, RankLoad, Submit
from qwenfleet.deployments.wire.tokens import TokenIds


class Gateways:
    """Sessions by gateway, and their submits."""

    def __init__(self) -> None:
        self.attempts = Attempts()
        self.sessions: dict[str, Session] = {}

    def add(self, name: str, gateway: str = "gw-a", **fields: Any) -> tuple[str, bool]:
        session = self.sessions.setdefault(gateway, self.session(gateway))
        number = len(session.owned)
        submit = Submit(name, 0, fields.pop("prompt", [1, 2, 3]), b"", number=number, **fields)
        key = self.attempts.new_key(session)
        return key, self.attempts.add(key, session, submit)

    def suspect(self, name: str, gateway: str = "gw-a") -> str:
        key, may_run = self.add(name, gateway, is_trial=True)
        assert not may_run
        return key

    def session(self, gateway: str) -> Session:
        connection: Any = None  # nothing here writes to it
        return Session(gateway, connection, leased_until=0)

    def answer(self, output: Output[str], now: float = 0) -> Session | None:
        """The attempt's gateway; None if it is no longer held."""
        taken = self.attempts.take(CoreStep([output], []), now)
        return next(iter(taken), None)

    def on_trial(self) -> str | None:
        trial = self.attempts.next_trial()
        return None if trial is None else trial[0]


@pytest.fixture
def gateways() -> Gateways:
    return Gateways()


def test_an_ordinary_attempt_may_run_at_once(gateways: Gateways) -> None:
    key, may_run = gateways.add("x")
    assert may_run
    assert key in gateways.attempts
    assert len(gateways.attempts) == 1
    assert gateways.sessions["gw-a"].owned == {0: key}
    assert gateways.on_trial() is None


def test_suspects_are_tried_one_at_a_time_in_their_order_across_gateways(
    gateways: Gateways,
) -> None:
    keys = [gateways.suspect("x", "gw-a"), gateways.suspect("y", "gw-b"), gateways.suspect("z")]
    for key in keys:
        assert gateways.on_trial() == key
        assert gateways.on_trial() is None
        assert gateways.answer(Output(key, [7])) is not None
    assert gateways.on_trial() is None
    assert len(gateways.attempts) == 3  # cleared, they go on


def test_a_suspect_does_not_block_others_and_their_tokens_do_not_clear_it(
    gateways: Gateways,
) -> None:
    tried, waits = gateways.suspect("tried"), gateways.suspect("waits")
    assert gateways.on_trial() == tried
    free, may_run = gateways.add("free")
    assert may_run
    gateways.answer(Output(free, [7]))
    assert gateways.on_trial() is None
    gateways.answer(Output(tried, [7]))
    assert gateways.on_trial() == waits


def test_a_trial_that_is_dropped_lets_the_next_one_go(gateways: Gateways) -> None:
    first, second = gateways.suspect("first"), gateways.suspect("second", "gw-b")
    assert gateways.on_trial() == first
    assert gateways.attempts.drop(first)
    assert gateways.on_trial() == second


def test_a_suspect_that_was_dropped_before_its_trial_is_skipped(gateways: Gateways) -> None:
    first, second, third = (gateways.suspect(name) for name in ("first", "second", "third"))
    assert gateways.on_trial() == first
    gateways.attempts.drop(second)
    gateways.answer(Output(first, [7], finish_reason=0))
    assert gateways.on_trial() == third


def test_a_dropped_attempt_is_forgotten_and_a_second_drop_does_nothing(
    gateways: Gateways,
) -> None:
    key, _ = gateways.add("x")
    assert not gateways.attempts.are_none.is_set()
    assert gateways.attempts.drop(key)
    assert not gateways.attempts.drop(key)
    assert key not in gateways.attempts
    assert gateways.sessions["gw-a"].owned == {}
    assert gateways.attempts.are_none.is_set()
    assert gateways.answer(Output(key, [7])) is None


def test_the_last_output_of_an_attempt_ends_it(gateways: Gateways) -> None:
    key, _ = gateways.add("x")
    assert gateways.answer(Output(key, [7])) is gateways.sessions["gw-a"]
    assert key in gateways.attempts
    assert gateways.answer(Output(key, [8], finish_reason=0)) is gateways.sessions["gw-a"]
    assert key not in gateways.attempts
    assert gateways.attempts.are_none.is_set()


def test_load_counts_what_the_scheduler_does_not_know_yet(gateways: Gateways) -> None:
    idle = [RankLoad(0), RankLoad(1, running=1, kv_usage=0.5)]
    gateways.add("a", prompt=list(range(100)), dp_rank=0)
    gateways.add("b", prompt=list(range(50)), output_token_ids=[1] * 7, dp_rank=1)
    answered, _ = gateways.add("c", prompt=list(range(30)), dp_rank=1)
    gateways.add("d", prompt=list(range(5)))
    gateways.answer(Output(answered, [7]))
    assert gateways.attempts.load(idle) == [
        RankLoad(0, running=0, waiting=2, queued_prefill_tokens=105),
        RankLoad(1, running=1, waiting=1, queued_prefill_tokens=57, kv_usage=0.5),
    ]


def test_suspects_that_wait_for_their_trial_count_as_load(gateways: Gateways) -> None:
    for name in ("x", "y", "z"):
        gateways.suspect(name)
    gateways.on_trial()
    (load,) = gateways.attempts.load([RankLoad(0, running=1)])
    assert (load.running, load.waiting, load.queued_prefill_tokens) == (1, 2, 9)


def test_the_schedulers_own_queue_counts_when_it_is_longer(gateways: Gateways) -> None:
    assert gateways.attempts.load([RankLoad(0, running=2, waiting=5)]) == [
        RankLoad(0, running=2, waiting=5)
    ]


def test_each_rank_has_the_speed_of_its_own_steps(clock: Any) -> None:
    attempts, gateways = Attempts(clock), Gateways()
    session, ranks = gateways.session("gw-a"), [RankLoad(0), RankLoad(1), RankLoad(2)]
    speeds = {0: (0.25, 1 / 128), 1: (0.5, 1 / 64)}  # seconds of a prefill, of a decode step
    for index in range(3 * ENOUGH):
        for dp_rank, (prefill_s, step_s) in speeds.items():
            submit = Submit(f"{index}-{dp_rank}", 0, TokenIds([1] * 6000), b"", dp_rank=dp_rank)
            attempts.add(submit.request_id, session, submit)
            clock.advance(prefill_s)
            first = Output(submit.request_id, [7], cached_tokens=1904)
            attempts.take(CoreStep([first], ranks), clock())
            for reason in [None] * SAMPLE_STEPS + [0]:
                clock.advance(step_s)
                output = Output(submit.request_id, [8], finish_reason=reason)
                attempts.take(CoreStep([output], ranks), clock())
    assert attempts.load(ranks) == [
        RankLoad(0, prefill_tokens_per_s=16384, decode_step_s=1 / 128),
        RankLoad(1, prefill_tokens_per_s=8192, decode_step_s=1 / 64),
        RankLoad(2),
    ]


def test_a_suspect_that_waits_for_its_trial_takes_no_time(clock: Any) -> None:
    attempts, session = Attempts(clock), Gateways().session("gw-a")
    for index in range(ENOUGH):
        for name in ("tried", "waits"):
            submit = Submit(f"{name}-{index}", 0, TokenIds([1] * 4096), b"", is_trial=True)
            attempts.add(submit.request_id, session, submit)
        for name in ("tried", "waits"):
            clock.advance(60)  # the core has nothing to do
            assert attempts.next_trial() is not None
            clock.advance(1)
            output = Output(f"{name}-{index}", [7], finish_reason=0, cached_tokens=0)
            attempts.take(CoreStep([output], [RankLoad()]), clock())
    assert attempts.load([RankLoad()]) == [RankLoad(prefill_tokens_per_s=4096)]


@pytest.mark.parametrize(
    "first", [{"cached_tokens": None}, {"token_ids": [], "cached_tokens": 0, "finish_reason": 4}]
)
def test_an_output_without_cached_tokens_or_tokens_is_not_a_speed_sample(
    clock: Any, first: dict[str, Any]
) -> None:
    attempts, session = Attempts(clock), Gateways().session("gw-a")
    for index in range(5 * ENOUGH):
        submit = Submit(f"x-{index}", 0, TokenIds([1] * 4096), b"")
        attempts.add(submit.request_id, session, submit)
        clock.advance(1)
        output = Output(submit.request_id, **{"token_ids": [7]} | first)
        attempts.take(CoreStep([output], [RankLoad()]), clock())
        attempts.drop(submit.request_id)
    assert attempts.load([RankLoad()]) == [RankLoad()]


def test_the_schedulers_queue_separates_waiting_from_prefill(clock: Any) -> None:
    attempts, session = Attempts(clock), Gateways().session("gw-a")

    def step(key: str, seconds: float, waiting: int, **fields: Any) -> None:
        clock.advance(seconds)
        loads = [RankLoad(0, waiting=waiting), RankLoad(1, waiting=9)]
        attempts.take(CoreStep([Output(key, [7], **fields)], loads), clock())

    for index in range(2 * ENOUGH):
        for name in ("runs", "waits"):
            submit = Submit(f"{name}-{index}", 0, TokenIds([1] * 4096), b"")
            attempts.add(submit.request_id, session, submit)
        step(f"runs-{index}", 1, waiting=1, cached_tokens=0)
        for _ in range(4 * SAMPLE_STEPS):
            step(f"runs-{index}", 1 / 64, waiting=1)
        step(f"runs-{index}", 1 / 64, waiting=1, finish_reason=0)
        step(f"waits-{index}", 1, waiting=0, cached_tokens=0, finish_reason=0)
    (load,) = attempts.load([RankLoad()])
    assert (load.prefill_tokens_per_s, load.decode_step_s) == (4096, 1 / 64)
