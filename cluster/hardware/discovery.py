"""The machines of an existing cluster, from the nodes that Ray or Kubernetes lists. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwenfleet.cluster.hardware.accelerators import Accelerator, Vendor, find_accelerator
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.plan_errors import NoSuchMachines, PlanError

RAY_TYPE: Final = "accelerator_type:"
"""Prefix of Ray's resource that names a node's accelerator; its amount has no meaning."""


@dataclass(frozen=True)
class ClusterMachines:
    """The GPU nodes of a cluster, grouped by kind."""

    kinds: tuple[Machines, ...]
    """Kinds of nodes, the one with the most GPUs first."""
    skipped: tuple[str, ...] = ()
    """Skipped GPU nodes, each with the reason."""

    def only(self, accelerator: str | None) -> ClusterMachines:
        """Return the kinds with this accelerator; all for None. Raises NoSuchMachines if none
        matches."""
        kinds = self.kinds
        if accelerator is not None:
            wanted = find_accelerator(accelerator)
            kinds = tuple(kind for kind in kinds if kind.accelerator.name == wanted.name)
        if kinds:
            return ClusterMachines(kinds, self.skipped)
        has = ", ".join(kind.name for kind in self.kinds) or "no node with known GPUs"
        raise NoSuchMachines(has, accelerator, self.skipped)


def from_ray(nodes: Iterable[Mapping[str, Any]]) -> ClusterMachines:
    """Group the nodes of `ray.nodes()`."""
    counts: Counter[tuple[str, int]] = Counter()
    skipped = []
    for node in nodes:
        resources = node.get("Resources", {})
        gpus = int(resources.get("GPU", 0))
        if not node.get("Alive") or gpus < 1:  # dead, or a CPU node such as the head
            continue
        types = [name.removeprefix(RAY_TYPE) for name in resources if name.startswith(RAY_TYPE)]
        host = str(node.get("NodeManagerHostname", "?"))
        found = _known(types)
        if found is None:
            skipped.append(f"{host} ({', '.join(types) or 'GPUs without a type in Ray'})")
        else:
            counts[found.name, gpus] += 1
    return _grouped(counts, skipped)


def from_kubernetes(nodes: Iterable[Mapping[str, Any]]) -> ClusterMachines:
    """Group the items of `/api/v1/nodes`, as JSON, by their allocatable GPUs."""
    counts: Counter[tuple[str, int]] = Counter()
    skipped = []
    for node in nodes:
        name = str(node.get("metadata", {}).get("name", "?"))
        for vendor in Vendor:
            gpus = int(node.get("status", {}).get("allocatable", {}).get(
                vendor.kubernetes_resource, 0
            ))  # fmt: skip
            if gpus < 1:  # not this vendor's node
                continue
            labels = node.get("metadata", {}).get("labels") or {}
            product = labels.get(vendor.node_label)
            found = _known([product] if product else [])
            if (problem := _unusable(node)) is not None:
                skipped.append(f"{name} ({problem})")
            elif found is None:
                skipped.append(f"{name} ({product or f'no label {vendor.node_label}'})")
            else:
                counts[found.name, gpus] += 1
    return _grouped(counts, skipped)


def _unusable(node: Mapping[str, Any]) -> str | None:
    if node.get("spec", {}).get("unschedulable"):
        return "cordoned"
    conditions = node.get("status", {}).get("conditions") or []
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    return None if ready else "not ready"


def _known(names: Iterable[str]) -> Accelerator | None:
    for name in names:
        try:
            return find_accelerator(name)
        except PlanError:
            continue
    return None


def _grouped(counts: Counter[tuple[str, int]], skipped: list[str]) -> ClusterMachines:
    kinds = [
        Machines(find_accelerator(name), nodes, gpus) for (name, gpus), nodes in counts.items()
    ]
    kinds.sort(key=lambda kind: -kind.num_gpus)
    return ClusterMachines(tuple(kinds), tuple(skipped))
