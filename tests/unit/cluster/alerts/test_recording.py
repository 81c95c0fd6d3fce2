"""Tests the recording rules: names, metrics and windows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from qwenfleet.cluster.alerts import rule_file
from qwenfleet.cluster.alerts.rule import FOREIGN, LEAST_WINDOW_S, duration, scaled, seconds
from qwenfleet.cluster.metrics import METRICS

SHARED = {
    *(f"qwenfleet:slo_bad:ratio_rate{w}" for w in ("5m", "30m", "1h", "2h", "6h", "1d", "3d")),
    *(
        f"qwenfleet:{histogram}:quantile5m"
        for histogram in (
            "time_to_first_token_seconds",
            "inter_token_seconds",
            "queue_seconds",
            "request_seconds",
        )
    ),
    "qwenfleet:slo_budget_left:ratio30d",
    "qwenfleet:requests:rate5m",
    "qwenfleet:tokens:rate2m",
    "qwenfleet:engines",
    "qwenfleet:sessions",
    "qwenfleet:replicas_wanted",
    "qwenfleet:replicas_ready",
}
"""Series that dashboards and `qwenfleet top` use."""


def rules(scale: float = 1.0) -> list[dict[str, Any]]:
    return [
        rule
        for group in yaml.safe_load(rule_file.rules(scale))["groups"]
        for rule in group["rules"]
    ]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def names(expr: str) -> Iterator[str]:
    """Yield every metric that an expression reads."""
    found: list[str] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(str(node.name))
        return True

    promql_parser.walk(promql_parser.parse(expr), visit)
    yield from found


def exported() -> set[str]:
    return {
        metric.exported + suffix
        for metric in METRICS.values()
        for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
    }


def test_series_for_dashboards_are_recorded() -> None:
    assert recorded() >= SHARED


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_every_metric_in_a_rule_is_defined(rule: dict[str, Any]) -> None:
    read = set(names(rule["expr"]))
    assert read, rule["expr"]
    assert read <= exported() | recorded() | set(FOREIGN)


def test_recorded_name_and_labels_are_unique() -> None:
    keys = [
        (rule["record"], *sorted(rule.get("labels", {}).items()))
        for rule in rules()
        if "record" in rule
    ]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("scale", [1.0, 1 / 7, 1 / 60, 1e-6])
def test_scaled_rules_parse_and_keep_their_names(scale: float) -> None:
    assert [r.get("record") or r["alert"] for r in rules(scale)] == [
        r.get("record") or r["alert"] for r in rules()
    ]
    for rule in rules(scale):
        promql_parser.parse(rule["expr"])
        for window in re.findall(r"\[(\w+)\]", rule["expr"]):
            assert seconds(window) >= LEAST_WINDOW_S
        assert seconds(rule.get("for", "1s")) >= 1


def test_scale_changes_only_ranges_and_offsets() -> None:
    expr = 'rate(x{le="5m"}[1h]) > qwenfleet:slo_bad:ratio_rate1h offset 2h'
    assert scaled(expr, 1 / 60) == 'rate(x{le="5m"}[1m]) > qwenfleet:slo_bad:ratio_rate1h offset 2m'


@pytest.mark.parametrize(
    ("length_s", "text"),
    [(0.2, "1s"), (30, "30s"), (90, "90s"), (120, "2m"), (7200, "2h"), (2_592_000, "30d")],
)
def test_duration_has_one_unit(length_s: float, text: str) -> None:
    assert duration(length_s) == text
    assert seconds(text) == max(1, round(length_s))
