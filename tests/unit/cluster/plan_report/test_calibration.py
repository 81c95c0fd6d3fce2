import io
import json

from rich.console import Console

from qwenfleet.cluster.plan_report import calibration
from qwenfleet.cluster.speed.calibration import fitted
from qwenfleet.cluster.speed.measurements import LEFT_OUT, POINTS


def shown(width=400):
    page = io.StringIO()
    calibration.show(fitted(), Console(file=page, width=width, soft_wrap=True))
    return page.getvalue()


def test_the_report_lists_every_point_and_what_was_left_out():
    reported = shown()
    for point in POINTS:
        assert f"\n{point.label} " in reported
        assert point.source in reported
    for one in LEFT_OUT:
        assert one.reason in reported


def test_too_few_points_are_reported_without_a_number():
    lines = shown().splitlines()
    small = next(line for line in lines if line.startswith("30B on AMD"))
    assert small.split("  ")[-1].strip() == "too few"
    assert "%" not in small
    ttft = next(line for line in lines if line.startswith("Time to first token"))
    assert "n = 6, too few" in ttft


def test_the_json_has_the_same_content():
    tree = json.loads(json.dumps(calibration.as_json(fitted())))
    assert len(tree["points"]) == len(POINTS)
    groups = {group["group"]: group for group in tree["groups"]}
    assert groups["all"]["points"] == len(POINTS)
    assert groups["NVIDIA"]["median_error"] < 0.2
    assert groups["30B on AMD"]["median_error"] is None


def test_numbers_are_right_aligned():
    lines = shown().splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("time per token"))
    ends = {line.index("%") for line in lines[first + 1 : first + 5]}
    assert len(ends) == 1


def test_a_narrow_terminal_loses_no_word():
    assert shown(40).split() == shown(400).split()
