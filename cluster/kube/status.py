"""Status of a fleet in Kubernetes, for `qwenfleet status --kube`: `read` asks, `judge` is pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.hardware.accelerators import Vendor
from qwenfleet.cluster.kube import objects as kube_objects
from qwenfleet.cluster.kube import ray_services
from qwenfleet.cluster.kube.client import Kube
from qwenfleet.cluster.kube.objects import CLUSTER_LABEL, KubeNode, KubePod
from qwenfleet.cluster.kube.query import Query
from qwenfleet.cluster.kube.ray_services import EventLine, RayServiceStatus

ENDED: Final = {"Succeeded", "Failed"}
"""Phases of pods that no longer use their GPUs."""


@dataclass(frozen=True)
class GpuUse:
    """GPUs of one type."""

    type: str
    nodes: int
    allocatable: int
    requested: int
    requested_by_fleet: int


@dataclass(frozen=True)
class KubeStatus:
    namespace: str
    services: tuple[RayServiceStatus, ...]
    pods: tuple[KubePod, ...]
    """Pods of the RayClusters in the namespace."""
    nodes: tuple[KubeNode, ...]
    """Nodes with GPUs or with pods of the fleet."""
    gpus: tuple[GpuUse, ...]
    events: tuple[EventLine, ...]
    remarks: tuple[str, ...]
    """Notes on what is missing or could not be read."""

    def as_json(self) -> dict[str, Any]:
        tree = asdict(self)
        for node in tree["nodes"]:
            node["products"] = dict(node["products"])
            node["gpus"] = dict(node["gpus"])
        for pod in tree["pods"]:
            pod["gpus"] = dict(pod["gpus"])
        for service, seen in zip(tree["services"], self.services, strict=True):
            service["applications"] = dict(service["applications"])
            service["progress"] = seen.progress
        return tree


@dataclass(frozen=True)
class Objects:
    """The API server's answers."""

    services: Sequence[Mapping[str, Any]]
    pods: Sequence[Mapping[str, Any]]
    """Pods of all namespaces, if they could be listed."""
    nodes: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    remarks: tuple[str, ...] = ()


def read(kube: Kube) -> KubeStatus:
    """Read the status. Raises KubernetesError if RayServices or pods of the namespace cannot be
    listed; other refusals become remarks."""
    services = kube.items(Query("rayservices", kube.namespace))
    refused: list[str] = []
    try:
        pods = kube.items(Query("pods"))
    except KubernetesError as error:
        if error.api_status != 403:
            raise
        # namespaced permission only: count what it shows
        pods = kube.items(Query("pods", kube.namespace))
        refused.append(
            f"GPUs requested by pods in namespaces other than {kube.namespace} are not counted: "
            f"{error.problem}"
        )
    others = []
    for query in (Query("nodes"), Query("events", kube.namespace)):
        try:
            others.append(kube.items(query))
        except KubernetesError as error:
            if error.api_status != 403:
                raise
            refused.append(f"{query.resource} are not shown: {error}")
            others.append([])
    return judge(kube.namespace, Objects(services, pods, others[0], others[1], tuple(refused)))


def judge(namespace: str, objects: Objects) -> KubeStatus:
    nodes = [kube_objects.node(tree) for tree in objects.nodes]
    everyone = [kube_objects.pod(tree) for tree in objects.pods]
    services = tuple(
        sorted(map(ray_services.ray_service, objects.services), key=lambda service: service.name)
    )
    fleet_pods = tuple(
        sorted(
            (p for p in everyone if p.ray_cluster and p.namespace == namespace),
            key=lambda pod: (pod.ray_cluster, not pod.is_head, pod.group, pod.name),
        )
    )
    homes = {pod.node for pod in fleet_pods}
    shown = tuple(node for node in nodes if node.gpus or node.name in homes)
    names = {
        *(service.name for service in services),
        *(pod.name for pod in fleet_pods),
        *(pod.ray_cluster for pod in fleet_pods),
        *homes,
    }
    return KubeStatus(
        namespace=namespace,
        services=services,
        pods=fleet_pods,
        nodes=tuple(sorted(shown, key=lambda node: node.name)),
        gpus=tuple(gpu_use(nodes, everyone, {id(pod) for pod in fleet_pods})),
        events=tuple(ray_services.last_events(objects.events, names)),
        remarks=(*objects.remarks, *_remarks(namespace, services, fleet_pods, nodes)),
    )


def gpu_use(nodes: Iterable[KubeNode], pods: Iterable[KubePod], of_fleet: set[int]) -> list[GpuUse]:
    """GPU use by type, the most numerous type first. `of_fleet` holds ids of `pods`.

    Pods that are not scheduled are not counted, because they have no node.
    """
    counts: dict[str, Counter[str]] = {}
    homes: dict[str, KubeNode] = {}
    for node in nodes:
        homes[node.name] = node
        for vendor, number in node.gpus:
            use = counts.setdefault(_type(node, vendor), Counter())
            use.update(nodes=1, allocatable=number)
    for pod in pods:
        home = homes.get(pod.node)
        if home is None or pod.phase in ENDED:  # holds no GPU of any node
            continue
        for vendor, number in pod.gpus:
            use = counts.setdefault(_type(home, vendor), Counter())
            use.update(requested=number, fleet=number if id(pod) in of_fleet else 0)
    found = [
        GpuUse(name, use["nodes"], use["allocatable"], use["requested"], use["fleet"])
        for name, use in counts.items()
    ]
    return sorted(found, key=lambda use: (-use.allocatable, use.type))


def _type(node: KubeNode, vendor: Vendor) -> str:
    return node.product(vendor) or f"{vendor.kubernetes_resource}, no label {vendor.node_label}"


def _remarks(
    namespace: str,
    services: Sequence[RayServiceStatus],
    fleet_pods: Sequence[KubePod],
    nodes: Sequence[KubeNode],
) -> list[str]:
    remarks = []
    if not services:
        remarks.append(
            f"namespace {namespace} has no RayService: choose another with --namespace, or install "
            "the chart"
        )
    if services and not fleet_pods:
        remarks.append(f"no pod in namespace {namespace} has the label {CLUSTER_LABEL}")
    if nodes and not any(node.gpus for node in nodes):
        resources = " or ".join(vendor.kubernetes_resource for vendor in Vendor)
        labels = " and ".join(vendor.node_label for vendor in Vendor)
        remarks.append(
            f"none of the {len(nodes)} nodes offers GPUs: their status.allocatable has no "
            f"{resources}. Install the vendor's device plugin; its labels {labels} name the GPUs"
        )
    return remarks
