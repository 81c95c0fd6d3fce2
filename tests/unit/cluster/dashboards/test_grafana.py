"""Tests that the dashboards are consistent and use only metrics that exist."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from qwenfleet.cluster.alerts import recording
from qwenfleet.cluster.dashboards.grafana import DASHBOARDS, RUNBOOKS, render
from qwenfleet.cluster.dashboards.panels import GRID, Dashboard, Panel
from qwenfleet.cluster.dashboards.queries import MODEL, OURS
from qwenfleet.cluster.metrics import METRICS
from tests.watch.live_panels import Choice

RECORDED = {rule.name for group in recording.groups() for rule in group.rules}
RAY_FILES = {
    "ray_node_": "dashboard/modules/reporter/reporter_agent.py",
    "ray_cluster_": "dashboard/modules/reporter/reporter_agent.py",
    "ray_component_": "dashboard/modules/reporter/reporter_agent.py",
    "ray_serve_": "serve/_private/*.py",
}
"""Files in the ray package that name its metrics."""
RAY_NATIVE = {"ray_resources"}
"""Metrics of the raylet, which is C++: src/ray/stats/metric_defs.cc of Ray, not in its wheel."""
VLLM_FILES = ("v1/metrics/*.py",)
VALUES = {"fleet": "coder", "interval": "5m", "model": ".*", "deployment": ".*"}
PANELS = [(page, panel) for page in DASHBOARDS for panel in page.panels()]
every_panel = pytest.mark.parametrize(
    ("page", "panel"), PANELS, ids=[f"{page.uid}: {panel.title}" for page, panel in PANELS]
)
every_page = pytest.mark.parametrize("page", DASHBOARDS, ids=lambda page: page.uid)


def rendered(page: Dashboard) -> Any:
    return json.loads(render(page))


def parsed(expr: str) -> Any:
    return promql_parser.parse(re.sub(r"\$\{?([a-z]+)(:regex)?\}?", lambda m: VALUES[m[1]], expr))


def metric_names(node: Any) -> set[str]:
    """Yield the metric of each selector in a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        return {str(node.name)}
    names: set[str] = set()
    for part in ("expr", "lhs", "rhs", "vector_selector", "args"):
        below = getattr(node, part, None)
        for child in below if isinstance(below, list) else [below]:
            if child is not None:
                names |= metric_names(child)
    return names


@cache
def text_of(package: str, pattern: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.glob(pattern))
    assert files, f"{package} has no {pattern}"
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return text.replace("{protocol_name}", "http")  # of serve_num_{protocol_name}_requests


def base(name: str) -> set[str]:
    """Return the names that code may use for the metric `name` in Prometheus."""
    return {name, *(name.removesuffix(f"_{end}") for end in ("bucket", "sum", "count", "total"))}


def is_ours(name: str) -> bool:
    for metric in METRICS.values():
        ends = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        if name in {metric.exported + end for end in ends}:
            return True
    return name in RECORDED


def is_defined(name: str) -> bool:
    if name.startswith("ray_vllm_"):
        wanted = base(name.removeprefix("ray_vllm_"))
        return any(f'"vllm:{known}"' in text_of("vllm", f) for f in VLLM_FILES for known in wanted)
    for prefix, pattern in RAY_FILES.items():
        if name.startswith(prefix):
            wanted = base(name.removeprefix("ray_"))
            return any(f'"{known}"' in text_of("ray", pattern) for known in wanted)
    return name in RAY_NATIVE or is_ours(name)


@every_panel
def test_panel_has_a_description(page: Dashboard, panel: Panel) -> None:
    assert panel.title
    assert panel.description.endswith(".")
    assert len(panel.description) > 40
    assert panel.unit
    assert panel.queries
    assert 0 < panel.width <= GRID
    assert all(query.legend for query in panel.queries)


@every_panel
def test_query_uses_only_metrics_that_exist(page: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        names = metric_names(parsed(query.expr))
        assert names, query.expr
        assert not {name for name in names if not is_defined(name)}


@pytest.mark.parametrize(
    "name",
    ["ray_qwenfleet_no_such", "ray_qwenfleet_time_to_first_token_seconds", "ray_vllm_no_such",
     "ray_node_no_such", "ray_serve_no_such", "qwenfleet:no_such", "up_"],
)  # fmt: skip
def test_undefined_metric_is_detected(name: str) -> None:
    assert not is_defined(name)


@every_panel
def test_queries_select_the_chosen_fleet(page: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        assert "$fleet" in query.expr


@every_panel
def test_percentiles_come_from_buckets_or_rules(page: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        assert not re.search(r"\bavg\b|quantile_over_time", query.expr)
        if "_bucket" in query.expr:
            assert "histogram_quantile(" in query.expr
            assert "rate(" in query.expr


@every_panel
def test_legend_uses_only_labels_that_the_query_keeps(page: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        if not (
            kept := re.match(r"(?:histogram_quantile\([\d.]+, )?\w+ by \(([^)]*)\)", query.expr)
        ):
            continue
        labels = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        assert labels <= set(kept[1].split(", "))


@every_page
def test_ids_are_unique_and_panels_do_not_overlap(page: Dashboard) -> None:
    panels = rendered(page)["panels"]
    assert max(Counter(panel["id"] for panel in panels).values()) == 1
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert max(Counter(places).values()) == 1
    assert max(x for x, _ in places) < GRID


def test_uids_and_titles_are_unique() -> None:
    assert len({page.uid for page in DASHBOARDS}) == len(DASHBOARDS)
    for page in DASHBOARDS:
        titles = [panel.title for panel in page.panels()]
        assert len(set(titles)) == len(titles)


@every_page
def test_every_query_is_in_the_json(page: Dashboard) -> None:
    exprs = [t["expr"] for panel in rendered(page)["panels"] for t in panel.get("targets", ())]
    assert exprs == [query.expr for panel in page.panels() for query in panel.queries]


@every_page
def test_variables_are_the_same_in_every_dashboard(page: Dashboard) -> None:
    variables = {v["name"]: v for v in rendered(page)["templating"]["list"]}
    more = variables.pop("deployment", None)
    assert (more is not None) == page.has_deployments
    first = {v["name"]: v for v in rendered(DASHBOARDS[0])["templating"]["list"]}
    assert variables == first
    assert list(variables) == ["datasource", "fleet", "model", "interval"]


@every_page
def test_dashboard_links_to_the_others_and_the_runbooks(page: Dashboard) -> None:
    links = rendered(page)["links"]
    urls = {link["url"] for link in links}
    assert urls == {f"/d/{other.uid}" for other in DASHBOARDS if other != page} | {RUNBOOKS}
    assert all(
        link["includeVars"] and link["keepTime"] for link in links if link["url"] != RUNBOOKS
    )


@pytest.mark.parametrize(
    "models",
    [("qwen3-coder",), ("a", "b"), ('odd "name" \\ {x}|$(y) e', "a.b/c"), ("$fleet ${interval}",)],
)
def test_model_name_selects_only_that_model(models: tuple[str, ...]) -> None:
    filled = Choice("coder", models, "5m").fill(f"x{{{OURS}}}[$interval]")
    found = re.fullmatch(r'x\{fleet="coder",model=~`(.*)`\}\[5m\]', filled)
    assert found is not None
    for model in models:
        assert re.fullmatch(found[1], model)
        assert not re.fullmatch(found[1], model + "x")
    assert not re.fullmatch(found[1], "axb/c")


def test_all_models_are_selected_by_default() -> None:
    assert Choice("coder").fill(MODEL) == "model=~`.*`"
    assert Choice("coder").fill('"$1", "$no_such"') == '"$1", "$no_such"'
