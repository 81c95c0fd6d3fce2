"""Kubernetes, KubeRay and the fleet accept what every case in helm/qwenfleet/ci renders to."""

from __future__ import annotations

import copy
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.planner.fleet_defaults import planned
from qwenfleet.deployments.app import DRAIN_MARGIN_S, build
from qwenfleet.deployments.environment import cluster_environment

pytestmark = pytest.mark.chart

CHART = Path(__file__).resolve().parents[2] / "helm" / "qwenfleet"
CASES = sorted(
    path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")
)
OTHER_VARIABLES = {
    "HOME",
    "PYTHONDONTWRITEBYTECODE",
    "HF_TOKEN",
    "QWENFLEET_HEAD_STORE",
    "QWENFLEET_POD_LOG",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
}
WITHOUT_SCHEMA = {"RayService", "HTTPRoute"}
"""Kinds that are not Kubernetes' own: KubeRay's has its own test, and the Gateway API's CRDs are
not available."""


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def documents(case, render):
    return render(None, case)


def test_lint_passes(case, helm):
    helm.run("lint", "--strict", CHART, "-f", CHART / "ci" / f"{case}-values.yaml")


def test_the_defaults_lint_and_render(helm, render):
    helm.run("lint", "--strict", CHART)
    assert render()


def test_the_chart_is_packaged_without_its_cases(helm, tmp_path):
    helm.run("package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("qwenfleet-*.tgz")
    with tarfile.open(package) as files:
        names = {name.removeprefix("qwenfleet/") for name in files.getnames()}
    assert {"values.schema.json", "files/catalog.json", "files/ask.py", "README.md"} <= names
    assert not any(name.startswith("ci/") for name in names)
    assert "kind: RayService" in helm.run("template", "coder", package)


def test_kubernetes_accepts_every_object(documents):
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is missing: `make chart-test` has it"
    )
    version = kubernetes_validate.latest_version()
    checked = [tree for tree in documents if tree["kind"] not in WITHOUT_SCHEMA]
    assert len(checked) > 3
    for tree in checked:
        kubernetes_validate.validate(tree, version, strict=True)


def test_kubernetes_accepts_the_pods_of_every_group(documents, groups):
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is missing: `make chart-test` has it"
    )
    for name, group in groups(documents).items():
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(group["template"])}
        pod["metadata"]["name"] = name
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_kuberay_accepts_the_service(documents, only, check_ray_service):
    check_ray_service(only(documents, "RayService"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("numOfHost", 2), ("replicas", "one"), ("groupName", None)],
    ids=["an unknown key", "a wrong type", "a missing key"],
)
def test_that_check_is_strict(render, only, check_ray_service, field, value):
    from jsonschema import ValidationError

    tree = only(render(None, CASES[0]), "RayService")
    tree["spec"]["rayClusterConfig"]["workerGroupSpecs"][0][field] = value
    with pytest.raises(ValidationError):
        check_ray_service(tree)


def test_the_fleet_accepts_its_arguments_and_the_planner_each_pool(documents, serve_config):
    (application,) = serve_config(documents)["applications"]
    fleet = FleetConfig.model_validate(application["args"])
    for pool in fleet.engine_pools:
        planned(pool)
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"


def test_every_deployment_has_a_group_with_as_many_pods(documents, serve_config, groups):
    (application,) = serve_config(documents)["applications"]
    numbers = {one["name"]: one["num_replicas"] for one in application["deployments"]}
    pods = {name: group["replicas"] for name, group in groups(documents).items() if name != "head"}
    gateway = build(application["args"])._bound_deployment
    bound: list[Any] = list(gateway.init_args[1:])
    engines = [argument._bound_deployment.name for argument in bound]
    assert pods == numbers
    assert list(numbers) == [gateway.name, *engines]


def test_pods_have_the_gpus_and_nodes_of_the_layout(documents, serve_config, groups):
    (application,) = serve_config(documents)["applications"]
    pools = FleetConfig.model_validate(application["args"]).engine_pools
    engines = [group for name, group in groups(documents).items() if name.startswith("engine")]
    for pool, group in zip(pools, engines, strict=True):
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        gpus = sum(int(count) for name, count in limits.items() if name.endswith("/gpu"))
        assert gpus == (pool.sharding.gpus_per_node if pool.accelerator else 0)
        assert group["numOfHosts"] == pool.sharding.nodes
        if pool.accelerator:
            assert group["resources"]["GPU"] == str(gpus)
            assert group["resources"][f"accelerator_type:{pool.accelerator}"] == "1"


def test_ray_finds_haproxy_and_its_ports_in_every_pod(documents, serve_config, groups):
    (application,) = serve_config(documents)["applications"]
    wanted = cluster_environment(FleetConfig.model_validate(application["args"]))
    for group in groups(documents).values():
        (container,) = group["template"]["spec"]["containers"]
        found = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert found.items() >= wanted.items()
        assert found.keys() - wanted.keys() <= OTHER_VARIABLES


def test_every_pod_meets_the_restricted_standard(documents, groups):
    """Checks the list of the Pod Security Standards."""
    specs = [group["template"]["spec"] for group in groups(documents).values()]
    specs += [tree["spec"] for tree in documents if tree["kind"] == "Pod"]
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
        kinds = {key for volume in spec.get("volumes", ()) for key in volume} - {"name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret"}
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert "privileged" not in security


def test_every_image_is_pinned(documents, groups):
    specs = [group["template"]["spec"] for group in groups(documents).values()]
    specs += [tree["spec"] for tree in documents if tree["kind"] == "Pod"]
    for spec in specs:
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            assert re.search(r":\d+\.\d+\.\d+-(cpu|cuda|rocm)(@sha256:.{64})?$", container["image"])


def test_a_pod_outlives_its_drain(documents, groups, serve_config):
    """On SIGTERM Ray drains its node: Serve moves the replicas and waits for them."""
    (application,) = serve_config(documents)["applications"]
    for name, group in groups(documents).items():
        spec = group["template"]["spec"]
        if name != "head":
            (container,) = spec["containers"]
            values = {entry["name"]: entry.get("value") for entry in container["env"]}
            drain_s = int(values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            sleep_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert spec["terminationGracePeriodSeconds"] > sleep_s + drain_s + 30
            if name == "gateway":
                streams_s = application["args"]["gateway"]["drain_s"]
                assert drain_s >= streams_s + DRAIN_MARGIN_S + 100, "another gateway starts first"


def test_a_surplus_pod_is_removed_whether_it_runs_or_waits_for_a_node(documents, only):
    options = only(documents, "RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]
    idle_s = options["idleTimeoutSeconds"]
    assert idle_s < 600, "eight GPUs idle for minutes, not for an hour"
    pending = {"name": "RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S", "value": str(idle_s)}
    assert options["env"] == [pending]


def test_pods_do_not_set_labels_that_kuberay_selects_on(documents, groups):
    """KubeRay's head service selects on app.kubernetes.io/name `kuberay`."""
    for group in groups(documents).values():
        labels = group["template"]["metadata"]["labels"]
        assert not any(
            key.startswith(("app.kubernetes.io/", "ray.io/", "helm.sh/")) for key in labels
        )
        assert "0.1.0" not in labels.values()
