"""Upgrades of an installed release to this chart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from qwenfleet.cluster.config.slo import SloConfig
from tests.chart.operator_replay import canonical, changed_by_operator, compared, written_back

pytestmark = pytest.mark.chart

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "qwenfleet"
CASES = sorted(
    path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")
)
PREVIOUS = sorted((Path(__file__).parent / "previous").glob("*-values.yaml"))
NAMES = {
    "Ingress": {"coder-qwenfleet"},
    "HTTPRoute": {"coder-qwenfleet"},
    "NetworkPolicy": {"coder-qwenfleet", "coder-qwenfleet-clients"},
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
    for name in ("gateway", "engine-0"):
        before, after = groups(two)[name], groups(three)[name]
        assert after == before | {"replicas": 3}
        assert after["minReplicas"] < 2 < 3 < after["maxReplicas"], "Ray's autoscaler reaches both"


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


UNQUOTED = {
    "head": {"resources": {"requests": {"cpu": 2, "memory": "8192Mi"}, "limits": {}}},
    "gateway": {"resources": {"requests": {"cpu": 0.5, "memory": 8589934592}}},
    "engine": {"resources": {"requests": {"cpu": "1500m"}, "limits": {"memory": "1024Gi"}}},
    "autoscaler": {"resources": {"requests": {"cpu": "0.25", "memory": "0.5Gi"}}},
    "cache": {"size": "2048Gi"},
    "gcsFaultTolerance": {"rocksdb": {"enabled": True, "size": "1024Mi"}},
}
"""Quantities in forms that Kubernetes accepts, but prints in another."""


@pytest.mark.parametrize("values", [None, UNQUOTED], ids=["as written", "other quantities"])
@pytest.mark.parametrize("case", CASES)
def test_helm_upgrades_without_a_conflict_because_the_operator_changes_nothing(
    render, only, case, values
):
    """KubeRay's operator updates each RayService once, to add its finalizer. It then owns what its
    types print differently, and a list of worker groups as a whole."""
    if values and case.startswith("h100-8"):
        values = {**values, "gcsFaultTolerance": {}}  # the case has a Redis
    service = only(render(values, case), "RayService")
    assert list(changed_by_operator(service, written_back(service))) == []


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("4", "4"),
        (4, "4"),
        (0.5, "500m"),
        ("0.25", "250m"),
        ("2000m", "2"),
        ("1500m", "1500m"),
        ("2000", "2k"),
        (8589934592, "8589934592"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("2Ti", "2Ti"),
        ("3M", "3M"),
        ("0", "0"),
        ("0Mi", "0"),
        ("1E", "1E"),
    ],
)
def test_quantities_are_rendered_as_kubernetes_prints_them(render, groups, written, printed):
    values = {"head": {"resources": {"requests": {"memory": written}}}}
    (container,) = groups(render(values))["head"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["memory"] == printed
    if not printed.endswith("E"):
        assert canonical(str(written)) == printed


SPOT = [{"key": "spot", "operator": "Exists"}]
SETTINGS_OF_PODS = {
    "tolerations of the head": {"head": {"tolerations": SPOT}},
    "tolerations of gateways": {"gateway": {"tolerations": SPOT}},
    "tolerations of engines": {"engine": {"tolerations": SPOT}},
    "tolerations of one group": {"engines": {"engine-0": {"tolerations": SPOT}}},
    "tolerations of GPU nodes": {"accelerators": {"nvidia": {"tolerations": SPOT}}},
    "most gateways": {"gateway": {"maxReplicas": 9}},
    "most engines": {"engine": {"maxReplicas": 9}},
    "most engines of one group": {"engines": {"engine-0": {"maxReplicas": 9}}},
    "nodes": {"engine": {"nodeSelector": {"zone": "a"}}},
    "resources": {"engine": {"resources": {"requests": {"cpu": "9"}}}},
    "the store of the head": {"gcsFaultTolerance": {"redisAddress": "redis:6379"}},
}


@pytest.mark.parametrize("values", SETTINGS_OF_PODS.values(), ids=SETTINGS_OF_PODS.keys())
def test_a_changed_setting_of_pods_makes_a_new_cluster(render, only, values):
    """KubeRay leaves tolerations and bounds out of what it compares, so it would ignore them."""
    before, after = (only(render(one, "h100-1-30b"), "RayService") for one in (None, values))
    assert compared(before) != compared(after)


NUMBERS = {
    "gateways": {"fleet": {"gateway": {"replicas": 9}}},
    "fewer gateways": {"fleet": {"gateway": {"replicas": 1}}},
}


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("cpu")])
@pytest.mark.parametrize("values", NUMBERS.values(), ids=NUMBERS.keys())
def test_a_changed_number_makes_no_new_cluster_and_is_within_the_bounds(
    render, only, groups, serve_config, case, values
):
    before, after = render(None, case), render(values, case)
    assert compared(only(before, "RayService")) == compared(only(after, "RayService"))
    (application,) = serve_config(after)["applications"]
    running = groups(before)
    for deployment in application["deployments"]:
        group = running[deployment["name"]]
        assert group["minReplicas"] < deployment["num_replicas"] <= group["maxReplicas"]


def test_a_pool_of_two_nodes_grows_by_engines_not_by_pods(
    render, groups, serve_config, two_node_model
):
    """KubeRay counts replicas of numOfHosts pods each."""
    values = {
        "fleet": {"models": [two_node_model | {"replicas": {"min": 4}}]},
        "engine": {"maxReplicas": 4},
    }
    documents = render(values)
    group = groups(documents)["engine-0"]
    assert (group["numOfHosts"], group["replicas"], group["maxReplicas"]) == (2, 4, 4)
    assert serve_config(documents)["applications"][0]["deployments"][1]["num_replicas"] == 4


def test_numbers_that_the_autoscaler_cannot_reach_are_refused(render, refused):
    model = {"id": "smollm2-135m-instruct", "replicas": {"min": 5}}
    few = {"fleet": {"models": [model]}, "engine": {"maxReplicas": 4}}
    with pytest.raises(refused, match=r"engine-0 .* has 5 engines, but maxReplicas allows 4"):
        render(few)
    assert render(few | {"engines": {"engine-0": {"maxReplicas": 5}}})
    gateways = {"fleet": {"gateway": {"replicas": 4}}, "gateway": {"maxReplicas": 4}}
    with pytest.raises(refused, match=r"replicas 4 is not below gateway.maxReplicas 4"):
        render(gateways)


def test_the_head_ends_fast_because_its_successor_waits(render, groups):
    found = groups(render())
    assert found["head"]["template"]["spec"]["terminationGracePeriodSeconds"] == 10
    assert found["engine-0"]["template"]["spec"]["terminationGracePeriodSeconds"] > 100


def test_the_pod_of_helm_test_goes_when_it_passed(render, only):
    policy = only(render(), "Pod")["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    assert set(policy.split(",")) == {"before-hook-creation", "hook-succeeded"}
