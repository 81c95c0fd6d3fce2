"""A rank's speed is learned from its work only."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.engine_host.learned_rate import ENOUGH, FORGET_S, GRID
from qwenfleet.deployments.engine_host.rank_speed import SAMPLE_STEPS, SAMPLE_TOKENS, RankSpeed

GRID_ERROR = 2 ** (0.5 / GRID) - 1
"""The error that rounding to the grid adds, 9 %."""


def near(value: float, error: float = 0.01) -> object:
    return pytest.approx(value, rel=(1 + GRID_ERROR) * (1 + error) - 1)


class Engine:
    """A rank that takes `step_s` for each step, plus the time of its prefill."""

    def __init__(self, tokens_per_s: float = 10_000.0, step_s: float = 0.02) -> None:
        self.speed = RankSpeed()
        self.now = 100.0
        self.tokens_per_s = tokens_per_s
        self.step_s = step_s

    def step(
        self,
        *prompts: int | None,
        new_tokens: int | None = None,
        stall_s: float = 0,
        waiting: int = 0,
    ) -> None:
        """One step that answers these prompts, each given by its uncached tokens, or None if
        unknown. `new_tokens` is for a step that prefills without an answer."""
        worked = sum(tokens or 0 for tokens in prompts) if new_tokens is None else new_tokens
        self.now += self.step_s + worked / self.tokens_per_s + stall_s
        for tokens in prompts:
            self.speed.answered(tokens)
        self.speed.stepped(self.now, waiting)

    def come(self, count: int = 1) -> None:
        for _ in range(count):
            self.speed.came(self.now)

    def end(self, count: int = 1, is_answered: bool = True) -> None:
        for _ in range(count):
            self.speed.left(is_answered=is_answered)

    def serve(self, prompt: int, steps: int = 0) -> None:
        """One prompt, followed by that many steps."""
        self.come()
        self.step(prompt)
        for _ in range(steps):
            self.step()
        self.end()
        self.step()

    @property
    def prefill(self) -> float:
        return self.speed.prefill_tokens_per_s(self.now)

    @property
    def decode(self) -> float:
        return self.speed.decode_step_s(self.now)


def test_nothing_is_known_before_there_are_enough_samples() -> None:
    engine = Engine()
    for _ in range(ENOUGH - 1):
        assert (engine.prefill, engine.decode) == (0, 0)
        engine.serve(5000, steps=SAMPLE_STEPS - 1)
    engine.serve(5000, steps=SAMPLE_STEPS - 1)
    assert engine.prefill > 0
    assert engine.decode > 0


@pytest.mark.parametrize("step_s", [0.002, 0.02])
@pytest.mark.parametrize("tokens_per_s", [500.0, 10_000.0])
def test_both_speeds_match_the_engine(tokens_per_s: float, step_s: float) -> None:
    engine, rng = Engine(tokens_per_s, step_s), random.Random(0)
    for _ in range(40):
        engine.serve(rng.randrange(SAMPLE_TOKENS, 20_000), steps=30)
    assert engine.prefill == near(tokens_per_s)
    assert engine.decode == near(step_s)


def test_a_long_prompt_is_one_sample_over_all_steps_with_running_streams() -> None:
    engine = Engine()
    engine.come()
    engine.step(5000)
    for _ in range(10 * SAMPLE_STEPS):
        engine.step()
    for _ in range(10):
        engine.come()
        engine.step()  # it arrived too late for the running step
        for _ in range(11):
            engine.step(new_tokens=8192)
        engine.step(100_000, new_tokens=100_000 - 11 * 8192)
    assert engine.prefill == near(10_000, error=0.05)
    assert engine.decode == near(0.02)


def test_prompts_that_are_prefilled_together_are_one_sample() -> None:
    engine = Engine()
    for _ in range(2 * ENOUGH):
        engine.come(4)
        for _ in range(4):
            engine.step(SAMPLE_TOKENS // 4)
        engine.end(4)
        engine.step()
    # Steps of 128 tokens take 33 ms, of which 20 ms are decode; no decode step was seen alone.
    assert engine.prefill == near(SAMPLE_TOKENS / 4 / (0.02 + SAMPLE_TOKENS / 4 / 10_000))


def test_cached_and_small_prompts_do_not_change_the_prefill_rate() -> None:
    engine = Engine()
    for new_tokens in (16, 100, SAMPLE_TOKENS - 1) * 20:
        engine.serve(new_tokens, steps=5)
    assert engine.prefill == 0
    for _ in range(5):
        engine.serve(5000, steps=5)
    known = engine.prefill
    assert known == near(10_000)
    for new_tokens in (16, 100, SAMPLE_TOKENS - 1) * 20:
        engine.serve(new_tokens, steps=5)
    assert engine.prefill == known


def test_small_prompts_with_a_running_stream_do_not_add_up_to_a_sample() -> None:
    engine = Engine()
    engine.come()
    engine.step(100)
    for _ in range(100):
        engine.come()
        engine.step()
        engine.step(100)
        engine.end()
        engine.step()
    assert engine.prefill == 0
    assert engine.decode == near(0.02)


def test_queued_prompts_do_not_make_a_full_engine_look_slow() -> None:
    engine = Engine()
    engine.come()
    engine.step(5000)
    for _ in range(5 * ENOUGH):
        engine.come(2)
        engine.step(waiting=1)  # they arrived too late for the running step
        for _ in range(500):
            engine.step(waiting=2)
        engine.step(new_tokens=2500, waiting=1)
        engine.step(5000, new_tokens=2500, waiting=1)
        engine.step(5000)
        engine.end(2)
        engine.step()
    assert engine.prefill == near(10_000, error=0.05)
    assert engine.decode == near(0.02)


def test_prompts_that_arrive_together_are_prefilled_in_turn_while_others_wait() -> None:
    engine = Engine()
    for _ in range(3 * ENOUGH):
        engine.come(3)
        for waiting in (2, 1, 0):
            engine.step(new_tokens=8192, waiting=waiting)
            engine.step(10_000, new_tokens=10_000 - 8192, waiting=waiting)
        for _ in range(SAMPLE_STEPS):
            engine.step()
        engine.end(3)
        engine.step()
    assert engine.prefill == near(10_000, error=0.05)
    assert engine.decode == near(0.02)


def test_idle_time_is_not_a_sample() -> None:
    engine = Engine()
    for _ in range(20):
        engine.serve(5000, steps=SAMPLE_STEPS)
        engine.now += 60
    assert engine.prefill == near(10_000)
    assert engine.decode == near(0.02)


def test_time_between_an_abort_and_the_next_attempt_is_not_a_sample() -> None:
    engine = Engine()
    for _ in range(20):
        engine.come()
        engine.step(5000)
        engine.end()  # an abort: no step follows
        engine.now += 60
    assert engine.prefill == near(10_000, error=0.05)


@pytest.mark.parametrize("stalled", range(6))
def test_one_compilation_hardly_changes_the_speed(stalled: int) -> None:
    engine = Engine()
    for index in range(7):
        stall_s = 15.0 if index == stalled else 0.0
        engine.come()
        engine.step(5000, stall_s=stall_s)
        for step in range(SAMPLE_STEPS):
            engine.step(stall_s=stall_s if step == 3 else 0)
        engine.end()
        engine.step()
    # After clipping, it is one sample of four times the length.
    assert 10_000 / 2 < engine.prefill < 10_000 * (1 + GRID_ERROR) * 1.2
    assert 0.02 / (1 + GRID_ERROR) * 0.9 < engine.decode < 2 * 0.02


def test_an_aborted_or_unexplained_prompt_drops_its_sample() -> None:
    engine = Engine()
    for _ in range(20):
        engine.come()
        engine.step(5000)
        engine.come()
        engine.step(new_tokens=30_000)
        engine.end(is_answered=False)
        engine.step(new_tokens=8000)
        engine.come()
        engine.step(None, new_tokens=30_000)  # a resumed stream
        engine.come(2)
        engine.step(1000, None, new_tokens=31_000)
        engine.end(4)
        engine.step()
    assert engine.prefill == near(10_000, error=0.05)


def test_a_change_of_speed_is_learned() -> None:
    engine = Engine()
    for factor in (1.0, 0.25, 2.0):
        engine.tokens_per_s, engine.step_s = 10_000 * factor, 0.02 / factor
        for _ in range(200):
            engine.serve(5000, steps=40)
        assert engine.prefill == near(10_000 * factor, error=0.05)
        assert engine.decode == near(0.02 / factor, error=0.05)


def test_an_unconfirmed_speed_is_forgotten_and_learned_again() -> None:
    engine = Engine(tokens_per_s=20.0)
    for _ in range(ENOUGH):
        engine.serve(5000)
    assert engine.prefill == near(20)
    engine.now += FORGET_S - 1
    assert engine.prefill == near(20)
    engine.now += 2
    assert engine.prefill == 0
    engine.tokens_per_s = 10_000
    for _ in range(ENOUGH - 1):
        engine.serve(5000)
        assert engine.prefill == 0
    engine.serve(5000)
    assert engine.prefill == near(10_000, error=0.05)


def test_a_rank_whose_prefill_hides_its_decode_counts_as_at_most_twice_as_fast() -> None:
    engine = Engine(tokens_per_s=1e9, step_s=0.05)  # a GPU: 600 tokens cost no more than none
    for _ in range(20):
        engine.serve(600, steps=SAMPLE_STEPS)
    assert engine.prefill == near(2 * 600 / 0.05)


def test_two_steps_read_at_once_teach_the_same_speed() -> None:
    engine = Engine()
    engine.come()
    engine.step(5000)
    for _ in range(5 * SAMPLE_STEPS):
        engine.now += 0.04
        engine.speed.stepped(engine.now)
        engine.speed.stepped(engine.now)
    assert engine.decode == near(0.02)


@given(st.lists(st.sampled_from(["come", "answer", "unclear", "end", "abort", "step", "idle"])))
def test_speeds_are_never_negative_and_counts_return_to_zero(
    events: list[str],
) -> None:
    speed, now, waiting, running = RankSpeed(), itertools.count(0.0, 0.01), 0, 0
    for event in events * 3:
        if event == "come":
            speed.came(next(now))
            waiting += 1
        elif event in ("answer", "unclear") and waiting:
            speed.answered(1000 if event == "answer" else None)
            waiting, running = waiting - 1, running + 1
            speed.stepped(next(now))
        elif event == "end" and running:
            speed.left(is_answered=True)
            running -= 1
        elif event == "abort" and waiting:
            speed.left(is_answered=False)
            waiting -= 1
        elif event == "step":
            speed.stepped(next(now))
        elif event == "idle":
            next(now)
        assert (speed._held, speed._unanswered) == (waiting + running, waiting)
        at = next(now)
        assert speed.prefill_tokens_per_s(at) >= 0
        assert speed.decode_step_s(at) >= 0
