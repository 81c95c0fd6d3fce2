import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import H200, Vendor
from qwenfleet.cluster.models.catalog import CODER_480B
from qwenfleet.cluster.speed import calibration
from qwenfleet.cluster.speed import constants as speed_constants
from qwenfleet.cluster.speed.calibration import (
    COVERAGE,
    constants,
    cost_of,
    fit,
    fitted,
    hold_out,
    median_error,
    predicted_ms,
    spread,
)
from qwenfleet.cluster.speed.constants import SPREADS, VALUES
from qwenfleet.cluster.speed.cost import Parameter, Workload
from qwenfleet.cluster.speed.measurements import (
    LEFT_OUT,
    POINTS,
    TTFT_POINTS,
    UNSTATED_PROMPT_TOKENS,
    MeasuredTime,
)
from qwenfleet.cluster.speed.prediction import predict
from qwenfleet.cluster.speed.steps import EngineShape

TRUTH = {
    parameter: 2e-4 if parameter.is_time else 1.7 + index / 10
    for index, parameter in enumerate(Parameter)
}


def invented(point):
    """Replace the measured time by the one that the parameters `TRUTH` give."""
    return replace(point, measured_ms=predicted_ms(point, TRUTH))


def test_a_fit_to_the_models_own_times_predicts_them():
    world = [invented(point) for point in POINTS]
    found = fit(world)
    errors = [predicted_ms(point, found) / point.measured_ms - 1 for point in world]
    assert max(map(abs, errors)) < 0.02


def test_the_points_are_the_listed_ones():
    labels = [point.label for point in POINTS]
    assert labels[:13] == [*"ABCDEFGHIM", "N1", "N2", "N3"]
    assert {label[0] for label in labels[13:]} == set("PQRSTUV")
    assert len(labels) == len(set(labels)) == 49
    assert all(point.source and point.measured_ms > 0 for point in POINTS)


def test_unusable_publications_are_left_out():
    labels = {point.label for point in POINTS}
    assert not labels & {"J", "K", "L"}
    assert {"B", "C"} <= {p.label for p in POINTS if p.quantity is MeasuredTime.STEP}, (
        "medians of ITL"
    )
    assert "D" not in {point.label for point in TTFT_POINTS}
    assert all(one.reason for one in LEFT_OUT)


def test_the_fit_uses_exactly_these_points():
    model = fitted()
    assert model.values == fit(POINTS)
    assert [one.point for one in model.held_out] == list(POINTS)


def test_a_held_out_point_does_not_affect_its_prediction():
    ordinary = list(POINTS)
    absurd = [replace(ordinary[3], measured_ms=5000.0), *ordinary[:3], *ordinary[4:]]
    before = next(one for one in hold_out(ordinary) if one.point.label == "D")
    after = next(one for one in hold_out(absurd) if one.point.label == "D")
    assert after.without_point_ms == pytest.approx(before.without_point_ms, rel=1e-4)
    assert after.without_series_ms == pytest.approx(before.without_series_ms, rel=1e-4)


def test_a_held_out_series_does_not_affect_its_predictions():
    absurd = [
        replace(point, measured_ms=point.measured_ms * (50 if point.series == "T" else 1))
        for point in POINTS
    ]
    for one, other in zip(fitted().held_out, hold_out(absurd), strict=True):
        if one.point.series == "T":
            assert other.without_series_ms == pytest.approx(one.without_series_ms, rel=1e-4)


def test_time_per_token_is_predicted_within_a_fifth():
    error = median_error(fitted().held_out, by_series=False)
    assert error is not None
    assert error <= 0.20


@pytest.mark.parametrize("vendor", list(Vendor))
def test_ranges_cover_the_stated_share_of_unknown_setups(vendor):
    held_out = [one for one in fitted().held_out if one.point.vendor is vendor]
    series = [one.point.series for one in held_out]
    factor = fitted().spread(vendor)
    inside = sum(
        1 / series.count(one.point.series)
        for one in held_out
        if 1 / factor <= 1 + one.series_error <= factor * (1 + 1e-9)
    )
    assert inside / len(set(series)) >= COVERAGE - 1e-9


def test_ranges_from_other_setups_cover_most_of_an_unseen_one():
    """The factor comes only from the errors of the other setups."""
    held_out = [one for one in fitted().held_out if one.point.vendor is Vendor.NVIDIA]
    inside = []
    for one in held_out:
        factor = spread([other for other in held_out if other.point.series != one.point.series])
        inside.append(1 / factor <= 1 + one.series_error <= factor)
    assert sum(inside) / len(inside) >= 0.7


def test_too_few_points_have_no_error():
    amd_30b = [one for one in fitted().held_out if one.point.series == "N"]
    assert median_error(amd_30b, by_series=False) is None
    assert median_error([], by_series=True) is None


@pytest.mark.parametrize(("time_s", "factor"), [(2e-4, 2.0), (1e-4, 4.0), (5e-5, 1.0)])
def test_the_starting_point_of_the_fit_hardly_matters(monkeypatch, time_s, factor):
    values = fitted().values
    monkeypatch.setattr(calibration, "START_TIME_S", time_s)
    monkeypatch.setattr(calibration, "START_FACTOR", factor)
    other = fit(POINTS)
    for point in POINTS:
        assert predicted_ms(point, other) == pytest.approx(predicted_ms(point, values), rel=0.03)


@pytest.mark.parametrize("prompt", [UNSTATED_PROMPT_TOKENS / 2, UNSTATED_PROMPT_TOKENS * 2])
def test_unstated_prompt_lengths_hardly_matter(prompt):
    sweeps = [point for point in POINTS if point.series in "PQRTUV" and "/" in point.label]
    assert len(sweeps) == 36
    for point in sweeps:
        other = replace(point, load=replace(point.load, prompt_tokens=prompt))
        values = fitted().values
        change = predicted_ms(other, values) / predicted_ms(point, values) - 1
        assert abs(change) < (0.25 if point.load.concurrency > 90 else 0.12)


def test_no_parameter_is_faster_than_the_data_sheet():
    for parameter, value in fitted().values.items():
        if parameter.is_time:
            assert 1e-6 < value < 1e-3
        else:
            assert value > 1, "nothing is faster than its data sheet"


def test_a_cost_is_the_sum_of_its_parts():
    cost = cost_of(POINTS[0])
    values = fitted().values
    amounts = [cost.amount(parameter) * values[parameter] for parameter in Parameter]
    total = math.fsum([*amounts, cost.amount(None)])
    assert cost.seconds(values) == pytest.approx(total)
    assert sum(cost.by_cause(values).values()) == pytest.approx(total)


def test_the_constants_match_a_new_fit():
    """If this fails, run `python -m qwenfleet.cluster.speed.calibration`."""
    model = fitted()
    assert dict(VALUES) == pytest.approx(dict(model.values), rel=1e-4)
    assert dict(SPREADS) == pytest.approx({v: model.spread(v) for v in Vendor}, rel=1e-4)


def test_the_constants_file_is_what_the_fit_writes():
    written = Path(speed_constants.__file__).read_text()
    number = re.compile(r"\d+\.\d+(e-\d+)?")
    assert number.sub("N", written) == number.sub("N", constants(fitted()))
    assert f"{calibration.__name__}`" in written


def test_a_plan_does_not_run_the_fit(monkeypatch):
    monkeypatch.setattr(calibration, "fit", lambda points: pytest.fail("it was fitted again"))
    layout = Layout.parse("TP8")
    predict(EngineShape(CODER_480B, H200, layout), Workload(8, 1000, 100))
