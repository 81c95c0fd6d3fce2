import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import B200, H100, H200, MI300X, MI325X, Vendor
from qwenfleet.cluster.models.catalog import CODER_30B
from qwenfleet.cluster.plan_errors import PlanError
from qwenfleet.cluster.speed.calibration import fitted
from qwenfleet.cluster.speed.cost import Workload
from qwenfleet.cluster.speed.measurements import FP8_480B, POINTS, TTFT_POINTS, MeasuredTime
from qwenfleet.cluster.speed.prediction import (
    Range,
    caveats,
    context_table,
    most_sequences,
    predict,
    ttft_factors,
)
from qwenfleet.cluster.speed.steps import EngineShape

LOAD = Workload(32, 4000, 500)


def shape(accelerator=H200, layout="TP8+EP8", geometry=FP8_480B):
    return EngineShape(geometry, accelerator, Layout.parse(layout))


def test_the_ranges_of_a_speed_are_consistent():
    speed = predict(shape(), LOAD)
    assert speed.tpot_s.low < speed.tpot_s.high
    request = speed.ttft_s + speed.tpot_s * 499
    assert speed.output_tokens_per_s.low == pytest.approx(32 * 500 / request.high)
    assert speed.output_tokens_per_s.high == pytest.approx(32 * 500 / request.low)
    assert speed.total_tokens_per_s.low == pytest.approx(speed.output_tokens_per_s.low * 9)


def test_ranges_are_as_wide_as_the_vendors_spread():
    for accelerator, vendor in [(H200, Vendor.NVIDIA), (MI300X, Vendor.AMD)]:
        tpot = predict(shape(accelerator), LOAD).tpot_s
        assert tpot.high / tpot.low == pytest.approx(fitted().spread(vendor) ** 2)


def test_most_ranges_contain_the_measurement():
    measured = [point for point in POINTS if point.quantity is MeasuredTime.TPOT]
    inside = [
        point.measured_ms / 1000 in predict(point.shape, point.load).tpot_s for point in measured
    ]
    assert sum(inside) >= 0.8 * len(inside)


def test_every_measured_ttft_is_in_its_range():
    low, high = ttft_factors()
    assert low < 1 < high
    for point in TTFT_POINTS:
        ttft = predict(point.shape, point.load).ttft_s
        assert ttft.low * (1 - 1e-9) <= point.measured_ms / 1000 <= ttft.high * (1 + 1e-9)


@given(st.sampled_from([H100, H200, B200, MI300X]), st.floats(1, 500), st.floats(1, 100_000))
def test_more_load_is_never_faster_for_one_stream(accelerator, concurrency, prompt):
    of = shape(accelerator)
    few = predict(of, Workload(concurrency, prompt, 500)).tpot_s
    many = predict(of, Workload(concurrency + 1, prompt, 500)).tpot_s
    assert few.low <= many.low * (1 + 1e-9)


def test_the_slo_limits_the_concurrency():
    of = shape()
    most = most_sequences(of, 1000, 500, 0.060)
    assert 1 <= most < 4096
    assert predict(of, Workload(most, 1000, 500)).tpot_s.high <= 0.060
    assert predict(of, Workload(most + 1, 1000, 500)).tpot_s.high > 0.060


def test_an_slo_out_of_reach_has_no_concurrency():
    assert most_sequences(shape(), 1000, 500, 0.001) == 0


def test_an_slo_of_0_is_refused():
    with pytest.raises(PlanError, match="time per token is 0 s"):
        most_sequences(shape(), 1000, 500, 0)


def test_longer_contexts_leave_room_for_fewer_sequences():
    contexts = (8192, 131_072, 262_144, 4_000_000)
    rows = context_table(shape(), lambda context: 2_219_000 // context, contexts, 1000)
    assert [row.sequences for row in rows] == [270, 16, 8, 0]
    assert rows[-1].tpot_s is None
    assert rows[-1].output_tokens_per_s is None
    times = [row.tpot_s.low for row in rows if row.tpot_s]
    assert len(times) == 3


def test_a_full_engine_generates_what_its_steps_allow():
    (row,) = context_table(shape(), lambda _: 8, (32_768,), 1000)
    assert row.tpot_s
    assert row.output_tokens_per_s
    assert row.output_tokens_per_s.low == pytest.approx(8 / row.tpot_s.high)


def test_longer_sequences_are_slower():
    rows = context_table(shape(), lambda _: 8, (1000, 10_000, 100_000, 262_144), 500)
    times = [row.tpot_s.low for row in rows if row.tpot_s]
    assert times == sorted(times)
    assert len(set(times)) == 4


def test_a_context_shorter_than_the_answer_still_has_a_prompt():
    (row,) = context_table(shape(), lambda _: 8, (2,), 1000)
    assert row.tpot_s


def test_caveats_name_what_was_not_measured():
    reported = " ".join(caveats(shape(MI300X, "TP8xPP2@2"), Workload(1, 100_000, 10)))
    for words in ("AMD", "several nodes", "pipeline", "above 10,000 tokens", "first token"):
        assert words in reported
    assert len(caveats(shape(H100), LOAD)) == 1


@pytest.mark.parametrize(
    ("accelerator", "reported"), [(H200, "1 is of H200"), (MI325X, "none is of MI325X")]
)
def test_accelerators_with_few_measurements_are_named(accelerator, reported):
    assert any(reported in sentence for sentence in caveats(shape(accelerator), LOAD))


def test_a_small_model_on_one_gpu_is_in_the_published_region():
    speed = predict(shape(H100, "TP1", CODER_30B), Workload(1, 1000, 250))
    assert speed.tpot_s.low < 0.010 < speed.tpot_s.high * 2


@pytest.mark.parametrize(
    ("low", "high", "reported"),
    [
        (0.0123, 0.0456, "0.012 to 0.046 s"),
        (17.4, 31.6, "17 to 32 s"),
        (1234, 98_765, "1,200 to 99,000 s"),
    ],
)
def test_a_range_is_printed_with_two_digits(low, high, reported):
    assert Range(low, high).text("s") == reported


@pytest.mark.parametrize(("low", "high"), [(2, 1), (-1, 1)])
def test_an_invalid_range_is_refused(low, high):
    with pytest.raises(ValueError, match="not a range"):
        Range(low, high)
