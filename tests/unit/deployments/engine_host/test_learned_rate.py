"""A rate follows its recent samples, and single outliers hardly move it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.engine_host.learned_rate import (
    CLIP,
    ENOUGH,
    FORGET_S,
    GRID,
    HALF_LIFE_S,
    LearnedRate,
)

GRID_ERROR = 2 ** (0.5 / GRID) - 1
"""The error that rounding to the grid adds, 9 %."""


def near(value: float, error: float = 0.01) -> object:
    return pytest.approx(value, rel=(1 + GRID_ERROR) * (1 + error) - 1)


samples = st.lists(st.tuples(st.floats(1, 1e6), st.floats(1e-6, 1e4)), min_size=ENOUGH, max_size=60)


@given(samples)
def test_an_estimate_lies_between_its_slowest_and_fastest_sample(
    given_samples: list[tuple[float, float]],
) -> None:
    rate, rates = LearnedRate(), []
    for amount, seconds in given_samples:
        rate.note(amount, seconds, 0.0)
        rates.append(amount / seconds)
    slack = (1 + GRID_ERROR) * 1.001
    assert min(rates) / slack <= rate.per_s(0.0) <= max(rates) * slack


@given(samples, st.tuples(st.floats(1, 1e6), st.floats(1e-6, 1e6)))
def test_one_sample_moves_an_estimate_by_no_more_than_the_clip(
    given_samples: list[tuple[float, float]], outlier: tuple[float, float]
) -> None:
    rate = LearnedRate()
    for amount, seconds in given_samples:
        rate.note(amount, seconds, 0.0)
    before = rate.per_s(0.0)
    rate.note(*outlier, 0.0)
    slack = (1 + GRID_ERROR) ** 2 * 1.001
    assert before / CLIP / slack <= rate.per_s(0.0) <= before * CLIP * slack


@given(st.floats(1, 100), st.floats(1, 100))
def test_a_change_by_any_factor_up_to_100_is_learned_within_a_dozen_half_lives(
    old: float, new: float
) -> None:
    rate = LearnedRate()
    for _ in range(ENOUGH + 5):
        rate.note(old, 1.0, 0.0)
    for _ in range(math.ceil(12 * HALF_LIFE_S)):
        rate.note(new, 1.0, 0.0)
    assert rate.per_s(0.0) == near(new, error=0.25)


@given(st.floats(0.5, 2e6), st.floats(0.95, 1.05))
def test_similar_engines_have_equal_or_neighboring_estimates(per_s: float, by: float) -> None:
    rates = []
    for value in (per_s, per_s * by):
        rate = LearnedRate()
        for _ in range(ENOUGH):
            rate.note(value, 1.0, 0.0)
        assert rate.per_s(0.0) == near(value)
        rates.append(rate.per_s(0.0))
    assert max(rates) / min(rates) <= 2 ** (1 / GRID) * 1.001


def test_a_sample_without_duration_is_ignored() -> None:
    rate = LearnedRate()
    for _ in range(2 * ENOUGH):
        rate.note(100.0, 0.0, 0.0)
    assert rate.per_s(0.0) == 0


def test_a_rate_is_forgotten_after_a_time_without_samples() -> None:
    rate = LearnedRate()
    for _ in range(ENOUGH):
        assert rate.per_s(0.0) == 0
        rate.note(64.0, 1.0, 0.0)
    assert (rate.per_s(FORGET_S), rate.per_s(FORGET_S + 0.1)) == (64.0, 0.0)
    rate.note(64.0, 1.0, FORGET_S)
    assert rate.per_s(2 * FORGET_S) == 64.0
