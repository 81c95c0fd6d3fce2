"""What an operator installed before goes on with this chart."""

from __future__ import annotations

import re
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
"""Of objects that hold state, or that others name: an upgrade that renames one loses that."""


@pytest.mark.parametrize("values", PREVIOUS, ids=lambda path: path.stem)
def test_the_values_of_an_earlier_chart_are_taken_and_nothing_is_renamed(helm, values):
    found: dict[str, set[str]] = {}
    for tree in helm.template("-f", values):
        found.setdefault(tree["kind"], set()).add(tree["metadata"]["name"])
    assert found.items() >= NAMES.items()


def test_there_are_values_of_every_released_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = {line.split("]")[0].removeprefix("## [") for line in changes.splitlines()
                if line.startswith("## [") and "Unreleased" not in line}  # fmt: skip
    assert released <= {path.name.removesuffix("-values.yaml") for path in PREVIOUS}


def test_a_new_chart_alone_makes_no_new_ray_cluster(helm, only, tmp_path):
    """KubeRay makes one when rayClusterConfig changes: no version of the chart may be in there."""
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
    """Serve would restart what its arguments concern, and KubeRay ignores numbers of replicas."""

    def fleet(count):
        model = {"id": "smollm2-135m-instruct", "replicas": {"min": count}}
        return {"fleet": {"models": [model], "gateway": {"replicas": count}}}

    two, three = render(fleet(2)), render(fleet(3))
    arguments = [serve_config(one)["applications"][0]["args"] for one in (two, three)]
    assert arguments[0] == arguments[1]
    numbers = ("replicas", "minReplicas", "maxReplicas")
    for name in ("gateway", "engine-0"):
        before, after = groups(two)[name], groups(three)[name]
        assert [after[key] for key in numbers] == [3, 3, 3]
        assert {k: v for k, v in before.items() if k not in numbers} == {
            k: v for k, v in after.items() if k not in numbers
        }


def test_the_readme_s_values_render(render, groups, serve_config):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n# my-values\.yaml\n(.*?)```", readme, re.DOTALL)
    documents = render(yaml.safe_load(block))
    assert groups(documents)["engine-0"]["replicas"] == 2
    image = groups(documents)["engine-0"]["template"]["spec"]["containers"][0]["image"]
    assert image == "registry.example.com/qwenfleet:0.1.0-cuda"
    assert f"{image.rpartition('/')[2]} " in readme  # which its commands build
    assert serve_config(documents)


def test_another_objective_restarts_nothing(render, serve_config):
    """Serve restarts every replica under other `args`; `user_config` reaches those that run."""

    def served(slo, own):
        models = [{"id": "a"}, {"id": "b", "slo": own}]
        (application,) = serve_config(render({"fleet": {"models": models, "slo": slo}}))[
            "applications"
        ]
        (gateway,) = (one for one in application["deployments"] if one["name"] == "gateway")
        return application["args"], gateway["user_config"]["objectives"]

    before, told = served({"ttft_s": 2}, {"ttft_s": 1})
    after, told_after = served({"ttft_s": 3}, {"ttft_s": 4})
    assert before == after
    assert {model: SloConfig(**slo).ttft_s for model, slo in told.items()} == {"a": 2, "b": 1}
    assert {model: SloConfig(**slo).ttft_s for model, slo in told_after.items()} == {"a": 3, "b": 4}
