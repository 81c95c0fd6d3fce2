"""The chart's objects for the Prometheus operator and for Grafana's sidecar."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from qwenfleet.deployments.telemetry.gateway_metrics import HEAD_STORES

pytestmark = pytest.mark.chart

FILES = Path(__file__).resolve().parents[2] / "helm" / "qwenfleet" / "files"
SCHEMAS = FILES.parents[2] / "build" / "chart" / "node_modules"
ON = {"enabled": True}
RUNBOOKS = "https://docs.example.com/runbooks"


def kinds(documents):
    return {tree["kind"] for tree in documents}


def test_by_default_a_cluster_without_the_operator_accepts_all_objects(render):
    assert not kinds(render()) & {"PodMonitor", "PrometheusRule"}


@pytest.mark.skipif(
    shutil.which("node") is None or not SCHEMAS.is_dir(),
    reason="node, or the operator's schemas in build/chart, are missing: npm installs them",
)
def test_the_operators_own_schemas_accept_the_objects(render):
    monitoring = {"podMonitor": ON, "rules": ON, "runbooks": RUNBOOKS}
    documents = render({"monitoring": monitoring, "fullnameOverride": "x"})
    objects = [tree for tree in documents if tree["kind"] in {"PodMonitor", "PrometheusRule"}]
    assert len(objects) == 2
    done = judge(objects)
    assert done.returncode == 0, done.stderr
    objects[0]["spec"] = {"selector": {}, "podMetricsEndpoints": [{"port": 8080}]}
    assert "must be string" in judge(objects).stderr


def judge(objects):
    return subprocess.run(
        ["node", "--input-type=module"],
        input=(Path(__file__).parent / "operator.mjs").read_text(encoding="utf-8"),
        cwd=SCHEMAS.parent,
        env=os.environ | {"OBJECTS": json.dumps(objects)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_monitor_scrapes_every_pod_at_ports_that_it_has(render, only, groups):
    documents = render({"monitoring": {"podMonitor": ON | {"labels": {"release": "prom"}}}})
    monitor = only(documents, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        (job,) = endpoint["relabelings"]
        assert job["targetLabel"] == "job"
        assert "qwenfleet" in job["replacement"]
    wanted = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    found = set()
    for group in groups(documents).values():
        labels = group["template"]["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        (ray, *_) = group["template"]["spec"]["containers"]
        names = {port["name"] for port in ray["ports"]}
        assert "metrics" in names
        found |= names
    assert wanted <= found


def test_the_rules_are_the_repositorys_with_links_to_the_runbooks(render, only):
    values = {"monitoring": {"rules": ON, "runbooks": RUNBOOKS}}
    spec = only(render(values), "PrometheusRule")["spec"]
    text = (FILES / "rules.yaml").read_text(encoding="utf-8")
    assert spec == yaml.safe_load(text.replace("RUNBOOKS_URL", RUNBOOKS))
    alerts = [rule for group in spec["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts
    assert all(rule["annotations"]["runbook_url"].startswith(RUNBOOKS) for rule in alerts)


def test_every_dashboard_is_a_config_map_that_grafanas_sidecar_finds(render):
    documents = render({"monitoring": {"dashboards": ON, "runbooks": RUNBOOKS}})
    maps = [tree for tree in documents if tree["kind"] == "ConfigMap"]
    names = {name for tree in maps for name in tree["data"]}
    assert names == {path.name for path in (FILES / "dashboards").glob("*.json")} != set()
    for tree in maps:
        assert tree["metadata"]["labels"]["grafana_dashboard"] == "1"
        for text in tree["data"].values():
            assert json.loads(text)["panels"]
            assert "RUNBOOKS_URL" not in text


@pytest.mark.parametrize("part", ["rules", "dashboards"])
def test_rules_and_dashboards_need_a_url_of_the_runbooks(render, refused, part):
    with pytest.raises(refused, match=r"monitoring\.runbooks is empty.* pages of helm/runbooks"):
        render({"monitoring": {part: ON}})
    with pytest.raises(refused, match="runbooks"):
        render({"monitoring": {part: ON, "runbooks": "helm/runbooks"}})
    assert render({"monitoring": {"podMonitor": ON}})


@pytest.mark.parametrize("part", ["podMonitor", "rules"])
def test_a_cluster_without_the_operator_is_refused_before_anything_is_installed(
    render, refused, part
):
    values = {"monitoring": {part: ON, "runbooks": RUNBOOKS}, "checks": {"crds": "always"}}
    versions = ("ray.io/v1/RayService", "ray.io/v1/RayCronJob")
    options = [word for version in versions for word in ("--api-versions", version)]
    with pytest.raises(refused, match=f"monitoring.{part}.enabled is set, .* operator is absent"):
        render(values, "", *options)
    assert render(values, "", *options, "--api-versions", "monitoring.coreos.com/v1")


@pytest.mark.parametrize(
    ("values", "store"),
    [
        ({"redisAddress": "redis:6379"}, "redis"),
        ({"rocksdb": {"enabled": True}}, "rocksdb"),
        ({}, "memory"),
    ],
)
def test_pods_know_the_store_of_the_head_and_gateways_its_meaning(render, groups, values, store):
    documents = render({"gcsFaultTolerance": values})
    assert HEAD_STORES[store] is (store != "memory")
    for group in groups(documents).values():
        (ray, *_) = group["template"]["spec"]["containers"]
        variables = {entry["name"]: entry.get("value") for entry in ray["env"]}
        assert variables["QWENFLEET_HEAD_STORE"] == store
