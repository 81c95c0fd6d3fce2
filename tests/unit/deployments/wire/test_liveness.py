"""A bound is learned from the longest recent duration, and stays between floor and ceiling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.wire.liveness import ENOUGH, WINDOW_S, LearnedBound

FLOOR_S, CEILING_S, UNLEARNED_S = 1.0, 60.0, 15.0
durations = st.floats(0, 1000, allow_nan=False)


@pytest.fixture
def bound() -> LearnedBound:
    return LearnedBound(4.0, FLOOR_S, CEILING_S, UNLEARNED_S)


def teach(bound: LearnedBound, duration_s: float, now: float, times: int = ENOUGH) -> None:
    for _ in range(times):
        bound.note(duration_s, now)


def test_with_few_samples_the_unlearned_bound_holds(bound: LearnedBound) -> None:
    assert bound.seconds == UNLEARNED_S
    teach(bound, 0.01, now=0, times=ENOUGH - 1)
    assert bound.seconds == UNLEARNED_S
    bound.note(0.01, 0)
    assert bound.seconds == FLOOR_S


def test_a_long_sample_counts_at_once_even_with_few_samples(bound: LearnedBound) -> None:
    bound.note(10, 0)
    assert bound.seconds == 40


def test_the_bound_is_a_multiple_of_the_longest_sample(bound: LearnedBound) -> None:
    teach(bound, 0.5, now=0)
    bound.note(2.0, 1)
    teach(bound, 0.5, now=2)
    assert bound.longest_s == 2.0
    assert bound.seconds == 8.0


def test_the_bound_never_exceeds_its_ceiling(bound: LearnedBound) -> None:
    teach(bound, 50, now=0)
    assert bound.seconds == CEILING_S


def test_the_longest_is_forgotten_after_one_to_two_windows(bound: LearnedBound) -> None:
    teach(bound, 2.0, now=0)
    bound.note(0.1, WINDOW_S)
    assert bound.seconds == 8.0
    bound.note(0.1, 2 * WINDOW_S - 0.1)
    assert bound.seconds == 8.0
    bound.note(0.1, 2 * WINDOW_S)
    assert bound.seconds == FLOOR_S


def test_after_a_long_pause_earlier_samples_do_not_count(bound: LearnedBound) -> None:
    teach(bound, 2.0, now=0)
    bound.note(0.1, 10 * WINDOW_S)
    assert bound.longest_s == 0.1


@given(st.lists(st.tuples(durations, st.floats(0, 500)), max_size=80))
def test_the_bound_stays_between_its_floor_and_its_ceiling(
    samples: list[tuple[float, float]],
) -> None:
    bound = LearnedBound(4.0, FLOOR_S, CEILING_S, UNLEARNED_S)
    now = 0.0
    for duration_s, pause_s in samples:
        now += pause_s
        bound.note(duration_s, now)
        assert FLOOR_S <= bound.seconds <= CEILING_S
        assert bound.longest_s >= duration_s
