"""Status of a fleet in Kubernetes: RayServices, pods, nodes, GPUs and events."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.cluster.kube import client, table
from qwenfleet.cluster.kube import status as kube_status
from qwenfleet.cluster.kube.status import GpuUse

H100, MI300X = "NVIDIA-H100-80GB-HBM3", "AMD_Instinct_MI300X_OAM"


def node(name: str, vendor: str = "", product: str = "", gpus: int = 0) -> dict[str, Any]:
    label = {"nvidia": "nvidia.com/gpu.product", "amd": "amd.com/gpu.product-name"}.get(vendor, "")
    return {
        "metadata": {"name": name, "labels": {label: product} if product else {}},
        "spec": {},
        "status": {
            "allocatable": {f"{vendor}.com/gpu": str(gpus)} if gpus else {},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(
    name: str, home: str = "", gpus: str = "", namespace: str = "fleet", **labels: str
) -> dict[str, Any]:
    vendor, _, count = gpus.partition(":")
    resources = {"limits": {f"{vendor}.com/gpu": count}} if gpus else {}
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {f"ray.io/{key.replace('_', '-')}": value for key, value in labels.items()},
        },
        "spec": {"nodeName": home, "containers": [{"name": "ray", "resources": resources}]},
        "status": {
            "phase": "Running" if home else "Pending",
            "conditions": [{"type": "Ready", "status": "True" if home else "False"}],
        },
    }


SERVICE: dict[str, Any] = {
    "metadata": {"name": "coder"},
    "status": {
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints"},
            {"type": "UpgradeInProgress", "status": "True", "reason": "BothActivePending"},
            {"type": "RollbackInProgress", "status": "False"},
        ],
        "numServeEndpoints": 2,
        "activeServiceStatus": {
            "rayClusterName": "coder-aaaaa",
            "rayClusterStatus": {
                "state": "ready", "readyWorkerReplicas": 3, "desiredWorkerReplicas": 3
            },
            "targetCapacity": 50,
            "trafficRoutedPercent": 75,
            "applicationStatuses": {"fleet": {"status": "RUNNING"}},
        },
        "pendingServiceStatus": {
            "rayClusterName": "coder-bbbbb",
            "rayClusterStatus": {"readyWorkerReplicas": 1, "desiredWorkerReplicas": 3},
            "targetCapacity": 50,
            "trafficRoutedPercent": 25,
        },
    },
}  # fmt: skip


@pytest.fixture
def api(kubernetes_api: Any) -> Any:
    """A fleet during an upgrade, next to another tenant's pods."""
    kubernetes_api.put("nodes", node("cpu-1"))
    kubernetes_api.put("nodes", node("h100-1", "nvidia", H100, 8))
    kubernetes_api.put("nodes", node("h100-2", "nvidia", H100, 8))
    kubernetes_api.put("nodes", node("amd-1", "amd", MI300X, 8))
    kubernetes_api.put("nodes", node("other"))
    kubernetes_api.put("rayservices", SERVICE)
    of_fleet = {"cluster": "coder-aaaaa"}
    head = pod("coder-head", "cpu-1", node_type="head", **of_fleet)
    kubernetes_api.put("pods", head)
    kubernetes_api.put("pods", pod("coder-h100", "h100-1", "nvidia:8", group="h100", **of_fleet))
    kubernetes_api.put("pods", pod("waiting", "", "amd:8", group="mi300x", **of_fleet))
    kubernetes_api.put("pods", pod("notebook", "h100-2", "nvidia:2", namespace="other"))
    done = pod("done", "amd-1", "amd:8", namespace="other")
    done["status"]["phase"] = "Succeeded"
    kubernetes_api.put("pods", done)
    for second, name in ((2, "coder"), (1, "coder-head"), (3, "somebody-else")):
        kubernetes_api.put(
            "events",
            {
                "metadata": {"name": f"event-{second}"},
                "type": "Normal",
                "reason": "Created",
                "involvedObject": {"kind": "Thing", "name": name},
                "lastTimestamp": f"2026-11-22T10:00:0{second}Z",
                "message": "made\n it",
                "count": second,
            },
        )
    return kubernetes_api


def test_a_fleet_is_shown_with_its_upgrade(api: Any) -> None:
    status = kube_status.read(client.connect())
    (service,) = status.services
    assert service.progress == (
        "upgrading: coder-bbbbb has 50 % of the capacity, 25 % of the traffic, 1 of 3 workers; "
        "coder-aaaaa has 50 % of the capacity, 75 % of the traffic, 3 of 3 workers"
    )
    assert [p.name for p in status.pods] == ["coder-head", "coder-h100", "waiting"]
    assert [n.name for n in status.nodes] == ["amd-1", "cpu-1", "h100-1", "h100-2"]
    assert [(e.about, e.message) for e in status.events] == [
        ("Thing/coder-head", "made it"),
        ("Thing/coder", "made it"),
    ]
    assert status.remarks == ()


def test_gpus_are_counted_by_type_over_all_namespaces(api: Any) -> None:
    assert kube_status.read(client.connect()).gpus == (
        GpuUse(H100, nodes=2, allocatable=16, requested=10, requested_by_fleet=8),
        GpuUse(MI300X, nodes=1, allocatable=8, requested=0, requested_by_fleet=0),
    )


def test_the_table_has_every_part(api: Any) -> None:
    text = table.table(kube_status.read(client.connect()))
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert rows["coder"][1:5] == ["Ready,", "UpgradeInProgress", "coder-aaaaa", "ready"]
    assert "coder is upgrading: coder-bbbbb has 50 % of the capacity, 25 % of the traffic" in text
    assert rows["coder-h100"] == ["coder-h100", "h100", "h100-1", "Running", "yes", "0", "8", "-"]
    assert rows["waiting"][2:5] == ["-", "Pending", "no"]
    assert rows["h100-1"] == ["h100-1", "ready", "8", H100, "-"]
    assert rows[H100] == [H100, "2", "16", "10", "8"]
    assert rows["2026-11-22T10:00:02Z"][-3:] == ["made", "it", "(x2)"]


def test_the_remark_on_a_cluster_without_gpus_names_the_missing_resources(
    kubernetes_api: Any,
) -> None:
    kubernetes_api.put("nodes", node("cpu-1"))
    kubernetes_api.put("nodes", node("cpu-2"))
    kubernetes_api.put("rayservices", {"metadata": {"name": "coder"}})
    remarks = kube_status.read(client.connect()).remarks
    assert remarks == (
        "no pod in namespace fleet has the label ray.io/cluster",
        "none of the 2 nodes offers GPUs: their status.allocatable has no nvidia.com/gpu "
        "or amd.com/gpu. Install the vendor's device plugin; its labels nvidia.com/gpu.product and "
        "amd.com/gpu.product-name name the GPUs",
    )


def test_gpus_without_a_label_are_shown_with_the_missing_label(kubernetes_api: Any) -> None:
    kubernetes_api.put("nodes", node("n", "amd", "", 4))
    (use,) = kube_status.read(client.connect()).gpus
    assert use.type == "amd.com/gpu, no label amd.com/gpu.product-name"


def test_refused_lists_are_left_out_with_a_remark(api: Any) -> None:
    api.denied = {("list", "nodes"), ("list", "events")}
    status = kube_status.read(client.connect())
    assert status.nodes == ()
    assert [remark.split(" are not shown")[0] for remark in status.remarks] == ["nodes", "events"]
    assert "does not let you list nodes of the cluster" in status.remarks[0]


def test_permission_to_list_pods_of_the_namespace_is_enough(api: Any) -> None:
    api.denied_everywhere = {"pods"}
    status = kube_status.read(client.connect())
    assert [p.name for p in status.pods] == ["coder-head", "coder-h100", "waiting"]
    assert status.gpus[0].requested == 8
    assert "pods in namespaces other than fleet are not counted" in status.remarks[0]


def test_the_table_says_why_a_first_install_is_not_ready(api: Any) -> None:
    why = "EngineStartError: an engine for model 'coder' did not start: " + "no memory " * 20
    broken = {"status": "UPDATING", "message": f"Error:\nqwenfleet.cluster.errors.{why}"}
    api.put(
        "rayservices",
        {
            "metadata": {"name": "coder"},
            "status": {
                "pendingServiceStatus": {
                    "rayClusterName": "coder-aaaaa",
                    "applicationStatuses": {
                        "fleet": {
                            "status": "DEPLOYING",
                            "serveDeploymentStatuses": {"engine-0": broken},
                        }
                    },
                }
            },
        },
    )
    text = table.table(kube_status.read(client.connect()))
    shown = why.removeprefix("EngineStartError: ").strip()
    assert "fleet DEPLOYING" in text
    assert "coder is starting: " in text
    assert f"engine-0 in coder-aaaaa is UPDATING: {shown}\n" in text, "in full"
