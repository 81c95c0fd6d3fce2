"""The figures of a load: percentiles by nearest rank, and medians over runs."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.loadtest import cases
from qwenfleet.loadtest.cases import Case
from qwenfleet.loadtest.client import Answer
from qwenfleet.loadtest.closed_loop import ClosedLoop, Sample

LOAD = ClosedLoop(is_stream=True, max_tokens=4, concurrency=2)
CASE = Case("vllm", True, 4, 2, 10.0, 40.0, 5.0, 20.0, 30.0, 2.5, 0)


def good(ttft_s: float, latency_s: float) -> Answer:
    return Answer(ttft_s, latency_s, LOAD.max_tokens)


def test_one_value_is_every_percentile() -> None:
    assert cases.percentile_ms([0.25], 0.5) == cases.percentile_ms([0.25], 0.99) == 250


def test_the_percentiles_of_a_hundred_values_are_values_by_rank() -> None:
    values_s = [number / 1000 for number in range(100, 0, -1)]
    assert cases.percentile_ms(values_s, 0.5) == 50
    assert cases.percentile_ms(values_s, 0.99) == 99
    assert cases.percentile_ms([*values_s, 0.2], 0.99) == 100
    assert cases.percentile_ms([*values_s, 0.2], 0.5) == 51


def test_nothing_has_no_percentile() -> None:
    assert cases.percentile_ms([], 0.5) is None


@given(st.integers(1, 5000), st.sampled_from(["0.5", "0.99"]))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(count: int, text: str) -> None:
    rank = math.ceil(Fraction(text) * count)
    assert cases.percentile_ms(range(1, count + 1), float(text)) == 1000 * rank


def test_a_run_is_counted_per_second_of_the_clock_and_per_request_sent() -> None:
    answers = (good(0.01, 0.1), good(0.03, 0.3), good(0.02, 0.2), Answer(9, 9, 0, "HTTP 500"))
    case = cases.measured("fleet", LOAD, Sample(answers, elapsed_s=2.0, cpu_s=0.4))
    assert case == Case(
        server="fleet",
        stream=True,
        max_tokens=4,
        concurrency=2,
        requests_per_s=1.5,
        tokens_per_s=6.0,
        ttft_p50_ms=20,
        latency_p50_ms=200,
        latency_p99_ms=300,
        cpu_ms_per_request=100,
        errors=1,
    )
    assert case.load == LOAD


def test_a_run_of_errors_only_has_no_latencies() -> None:
    sample = Sample((Answer(1, 1, 3, "short"),) * 2, elapsed_s=1.0, cpu_s=0.1)
    case = cases.measured("fleet", LOAD, sample)
    assert (case.ttft_p50_ms, case.latency_p50_ms, case.latency_p99_ms) == (None, None, None)
    assert (case.requests_per_s, case.tokens_per_s, case.errors) == (0, 0, 2)
    assert case.cpu_ms_per_request == 50


def test_the_json_of_a_case_has_these_keys() -> None:
    assert list(CASE.as_json()) == [
        "server",
        "stream",
        "max_tokens",
        "concurrency",
        "requests_per_s",
        "tokens_per_s",
        "ttft_p50_ms",
        "latency_p50_ms",
        "latency_p99_ms",
        "cpu_ms_per_request",
        "errors",
    ]


def test_a_field_is_what_was_loaded_or_has_a_median_or_counts_errors() -> None:
    loaded = ["server", "stream", "max_tokens", "concurrency"]
    assert [*loaded, *cases.FIGURES, "errors"] == list(CASE.as_json())


def test_the_median_is_taken_of_each_figure_and_errors_are_added() -> None:
    runs = [
        replace(CASE, requests_per_s=10.0, latency_p99_ms=300.0, errors=1),
        replace(CASE, requests_per_s=30.0, latency_p99_ms=100.0, errors=0),
        replace(CASE, requests_per_s=11.0, latency_p99_ms=200.0, errors=2),
    ]
    assert cases.median(runs) == replace(CASE, requests_per_s=11.0, latency_p99_ms=200.0, errors=3)


def test_the_median_of_two_runs_is_their_middle() -> None:
    runs = [replace(CASE, cpu_ms_per_request=1.0), replace(CASE, cpu_ms_per_request=2.0)]
    assert cases.median(runs).cpu_ms_per_request == 1.5


@pytest.mark.parametrize(
    ("values", "expected"), [([None, 7.0], 7.0), ([4.0, None, 6.0], 5.0), ([None, None], None)]
)
def test_runs_without_a_latency_are_left_out_of_its_median(
    values: list[float | None], expected: float | None
) -> None:
    runs = [replace(CASE, ttft_p50_ms=value, latency_p50_ms=value) for value in values]
    median = cases.median(runs)
    assert (median.ttft_p50_ms, median.latency_p50_ms) == (expected, expected)
    assert median.latency_p99_ms == CASE.latency_p99_ms
