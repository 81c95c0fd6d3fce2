"""Upgrades of an installed release to this chart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from qwenfleet.cluster.config.slo import SloConfig

pytestmark = pytest.mark.chart

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "qwenfleet"
PREVIOUS = sorted((Path(__file__).parent / "previous").glob("*-values.yaml"))
NAMES = {
    "Ingress": {"coder-qwenfleet"},
    "HTTPRoute": {"coder-qwenfleet"},
    "NetworkPolicy": {"coder-qwenfleet"},
    "PersistentVolumeClaim": {"coder-qwenfleet-cache"},
    "PodDisruptionBudget": {"coder-qwenfleet-gateway", "coder-qwenfleet-head"},
    "RayService": {"coder-qwenfleet"},
    "Secret": {"coder-qwenfleet-api-keys", "coder-qwenfleet-ray-auth"},
    "ServiceAccount": {"coder-qwenfleet"},
}
"""Objects that hold state or that users refer to by name; an upgrade must not rename them."""


@pytest.mark.parametrize("values", PREVIOUS, ids=lambda path: path.stem)
def test_the_values_of_an_earlier_chart_are_accepted_and_names_stay(helm, values):
    found: dict[str, set[str]] = {}
    for tree in helm.template("-f", values):
        found.setdefault(tree["kind"], set()).add(tree["metadata"]["name"])
    assert found.items() >= NAMES.items()


def test_every_released_version_has_its_values_here():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = {line.split("]")[0].removeprefix("## [") for line in changes.splitlines()
                if line.startswith("## [") and "Unreleased" not in line}  # fmt: skip
    assert released <= {path.name.removesuffix("-values.yaml") for path in PREVIOUS}


def test_a_new_chart_alone_does_not_create_a_new_ray_cluster(helm, only, tmp_path):
    """KubeRay creates one if rayClusterConfig changes, so it must not contain the chart version."""
    newer = tmp_path / "qwenfleet"
    shutil.copytree(CHART, newer)
    chart = yaml.safe_load((newer / "Chart.yaml").read_text(encoding="utf-8"))
    (newer / "Chart.yaml").write_text(yaml.safe_dump(chart | {"version": "9.9.9"}))
    case = CHART / "ci" / "h100-8-480b-fp8-values.yaml"
    specs = [
        only(list(yaml.safe_load_all(helm.run("template", "coder", folder, "-f", case))),
             "RayService")["spec"]
        for folder in (CHART, newer)
    ]  # fmt: skip
    assert specs[0] == specs[1]


def test_more_engines_change_numbers_only(render, serve_config, groups):
    """Serve restarts an application whose arguments change; KubeRay ignores changed replicas."""

    def fleet(count):
        model = {"id": "smollm2-135m-instruct", "replicas": {"min": count}}
        return {"fleet": {"models": [model], "gateway": {"replicas": count}}}

    two, three = render(fleet(2)), render(fleet(3))
    arguments = [serve_config(one)["applications"][0]["args"] for one in (two, three)]
    assert arguments[0] == arguments[1]
    numbers = ("replicas", "minReplicas", "maxReplicas")
    for name in ("gateway", "engine-0"):
        before, after = groups(two)[name], groups(three)[name]
        assert [after[key] for key in numbers] == [3, 3, 4 if name == "gateway" else 3]
        assert {k: v for k, v in before.items() if k not in numbers} == {
            k: v for k, v in after.items() if k not in numbers
        }


def test_a_changed_objective_restarts_nothing(render, serve_config):
    """Serve restarts every replica if `args` change; `user_config` reaches running replicas."""

    def served(slo, own):
        models = [{"id": "a"}, {"id": "b", "slo": own}]
        (application,) = serve_config(render({"fleet": {"models": models, "slo": slo}}))[
            "applications"
        ]
        (gateway,) = (one for one in application["deployments"] if one["name"] == "gateway")
        return application["args"], gateway["user_config"]["objectives"]

    before, old = served({"ttft_s": 2}, {"ttft_s": 1})
    after, new = served({"ttft_s": 3}, {"ttft_s": 4})
    assert before == after
    assert {model: SloConfig(**slo).ttft_s for model, slo in old.items()} == {"a": 2, "b": 1}
    assert {model: SloConfig(**slo).ttft_s for model, slo in new.items()} == {"a": 3, "b": 4}
