import json

from qwenfleet.cluster.plan_report import calibration
from qwenfleet.cluster.speed.calibration import fitted
from qwenfleet.cluster.speed.measurements import LEFT_OUT, POINTS


def test_the_report_has_every_point_and_what_was_left_out():
    said = calibration.text(fitted())
    for point in POINTS:
        assert f"\n{point.label} " in said
        assert point.source in said
    for one in LEFT_OUT:
        assert one.reason in said


def test_where_points_are_too_few_the_report_says_so_and_no_number():
    lines = calibration.text(fitted()).splitlines()
    small = next(line for line in lines if line.startswith("30B on AMD"))
    assert small.split("  ")[-1].strip() == "too few"
    assert "%" not in small
    ttft = next(line for line in lines if line.startswith("Time to first token"))
    assert "n = 6, too few" in ttft


def test_the_json_says_the_same():
    tree = json.loads(json.dumps(calibration.as_json(fitted())))
    assert len(tree["points"]) == len(POINTS)
    groups = {group["group"]: group for group in tree["groups"]}
    assert groups["all"]["points"] == len(POINTS)
    assert groups["NVIDIA"]["median_error"] < 0.2
    assert groups["30B on AMD"]["median_error"] is None


def test_columns_are_aligned():
    assert calibration.table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"
