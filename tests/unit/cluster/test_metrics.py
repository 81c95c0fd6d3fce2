"""Metric names follow Prometheus' conventions, and every metric is listed."""

from __future__ import annotations

import re

import pytest

from qwenfleet.cluster import metrics
from qwenfleet.cluster.metrics import CLOSED, METRICS, Metric

VERSIONS = ("version", "ray", "vllm")

EACH = pytest.mark.parametrize("metric", list(METRICS.values()), ids=lambda metric: metric.name)


def test_every_metric_of_the_module_is_listed_once() -> None:
    defined = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert sorted(metric.name for metric in defined) == sorted(METRICS)
    assert len(METRICS) > 5


@EACH
def test_a_name_has_the_projects_prefix_and_its_unit(metric: Metric) -> None:
    assert re.fullmatch(r"qwenfleet_[a-z][a-z_]*", metric.name)
    match metric.kind:
        case "counter":
            assert metric.name.endswith("_total")
        case "histogram":
            assert metric.name.endswith("_seconds")
        case "gauge":
            ends = (
                "_state",
                "_requests",
                "_engines",
                "_ratio",
                "_seconds",
                "_per_second",
                "_info",
                "_tolerance",
                "_drained",
                "_bytes",
            )
            assert metric.name.endswith(ends)


@EACH
def test_help_is_a_sentence(metric: Metric) -> None:
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert metric.help.endswith(".")


@EACH
def test_labels_come_from_closed_sets(metric: Metric) -> None:
    of_the_fleet = {"model", "deployment", "engine"}
    assert set(metric.labels) <= {*CLOSED, *of_the_fleet, "reason", "phase", *VERSIONS}
    assert metric.labels[:1] in ((), ("model",), ("role",))


@EACH
def test_only_histograms_have_buckets_in_rising_order(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_the_list_of_metrics_is_read_only() -> None:
    with pytest.raises(TypeError):
        METRICS["x"] = metrics.REQUESTS  # type: ignore[index]
