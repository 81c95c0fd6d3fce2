"""Rates are right although reports come in steps and clocks are set."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.live.exposition import ProcessReport, Series
from qwenfleet.cluster.live.history import History, change, extended, quantile

COUNT: Series = ("ray_qwenfleet_output_tokens_total", (("model", "coder"),))
EPOCH = 1.8e9


def report(clock_s: float, count: float | None, process: str = "g") -> ProcessReport:
    values: Mapping[Series, float] = {} if count is None else {COUNT: count}
    return ProcessReport(process, "node", "gateway", "demo", EPOCH + clock_s, values)


def followed(*reports: tuple[float, ProcessReport]) -> History:
    history: History = {}
    for at_s, one in reports:
        history = extended(history, [one], at_s, EPOCH + at_s)
    return history


def test_the_rate_of_a_counter_does_not_depend_on_the_time_of_reading() -> None:
    history: History = {}
    rates = set()
    for second in range(0, 90, 2):
        at_s = second // 10 * 10.0
        history = extended(history, [report(at_s, 5 * at_s)], float(second), EPOCH + second)
        if (found := change(history["g"])) is not None:
            rates.add(found.rate(COUNT))
    assert rates == {5.0}


def test_one_report_has_no_rate_however_often_it_is_read() -> None:
    history = followed(*((second, report(0, 100)) for second in range(0, 9, 2)))
    assert len(history["g"]) == 1
    assert change(history["g"]) is None


def test_the_late_part_of_a_report_belongs_to_it() -> None:
    history = followed((0, report(0, 10)), (10, report(10, 10)), (12, report(10, 60)))
    found = change(history["g"])
    assert found is not None
    assert (found.seconds, found.by[COUNT]) == (10.0, 50.0)


def test_a_window_holds_a_minute_and_the_report_before_it() -> None:
    history = followed(*((second, report(second, second)) for second in range(0, 201, 10)))
    found = change(history["g"])
    assert found is not None
    assert found.seconds == 60
    recent = change(history["g"], over_s=9)
    assert recent is not None
    assert recent.seconds == 10


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((10, 30, 5), 25),  # began again at 0
        ((None, 30, 40), 40),  # was not there, so it was 0
        ((7, 7, 7), 0),
    ],
)
def test_an_increase_accounts_for_resets_and_new_series(
    counts: tuple[float | None, ...], expected: float
) -> None:
    history = followed(*((10.0 * n, report(10.0 * n, count)) for n, count in enumerate(counts)))
    found = change(history["g"])
    assert found is not None
    assert found.by[COUNT] == expected


@pytest.mark.parametrize("step_s", [-3600.0, -1.0, 40.0, 3600.0])
def test_a_clock_that_was_set_starts_a_new_history(step_s: float) -> None:
    history = followed((0, report(0, 0)), (10, report(10, 50)), (12, report(10 + step_s, 60)))
    assert change(history["g"]) is None
    history = extended(history, [report(20 + step_s, 110)], 22, EPOCH)
    found = change(history["g"])
    assert found is not None
    assert found.rate(COUNT) == 5


@pytest.mark.parametrize("skew_s", [-5000.0, -3.0, 0.0, 7.0, 5000.0])
def test_a_skewed_clock_changes_no_rate_and_no_age_by_more_than_an_interval(skew_s: float) -> None:
    history = followed((100, report(96 + skew_s, 0)), (108, report(106 + skew_s, 50)))
    found = change(history["g"])
    assert found is not None
    assert found.rate(COUNT) == 5
    assert history["g"][-1].at_s == 108
    assert 90 <= history["g"][0].at_s <= 100


def test_a_process_without_a_report_for_a_minute_is_dropped() -> None:
    history = followed((0, report(0, 0)))
    assert "g" in extended(history, [], 59, EPOCH + 59)
    assert "g" not in extended(history, [], 61, EPOCH + 61)


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        ({0.1: 0.0, 0.5: 5.0, 1.0: 10.0, float("inf"): 10.0}, 0.5, 0.5),
        ({0.1: 0.0, 0.5: 5.0, 1.0: 10.0, float("inf"): 10.0}, 0.9, 0.9),
        ({0.1: 10.0, float("inf"): 10.0}, 0.5, 0.05),
        ({1.0: 1.0, float("inf"): 10.0}, 0.9, 1.0),
        ({1.0: 0.0, float("inf"): 0.0}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_quantiles_are_those_of_promql(
    buckets: dict[float, float], q: float, expected: float | None
) -> None:
    found = quantile(buckets, q)
    assert found == (None if expected is None else pytest.approx(expected))


@given(
    counts=st.lists(st.integers(0, 1000), min_size=3, max_size=12),
    low=st.floats(0.01, 1),
    high=st.floats(0.01, 1),
)
def test_a_higher_quantile_is_never_lower_and_none_leaves_the_buckets(
    counts: list[int], low: float, high: float
) -> None:
    buckets = {float(n): float(sum(counts[: n + 1])) for n in range(len(counts))}
    buckets[float("inf")] = float(sum(counts))
    low, high = sorted((low, high))
    first, second = quantile(buckets, low), quantile(buckets, high)
    assert (first is None) == (second is None) == (sum(counts) == 0)
    if first is not None and second is not None:
        assert 0 <= first <= second <= len(counts) - 1
