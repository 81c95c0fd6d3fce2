"""What KubeRay's operator does with a RayService: the fields that it writes back, those that it
compares, and the Services and pods that it makes. `kuberay/1.7.0.json` has its constants."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

Document = dict[str, Any]

KUBERAY: Document = json.loads((Path(__file__).parent / "kuberay" / "1.7.0.json").read_text())
BINARY = {suffix: 1024**power for power, suffix in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi"))}
DECIMAL = {
    suffix: Decimal(1000) ** power
    for power, suffix in enumerate(("m", "", "k", "M", "G", "T", "P"), start=-1)
}


def written_back(tree: Document) -> Document:
    """Return a RayService after the API server's defaults and an update by the operator, which
    parses it into its types and prints those."""
    filled = KUBERAY["defaults"] | KUBERAY["always_written"]
    result: Document = printed(with_fields(tree, "", filled))
    return result


def with_fields(tree: Any, path: str, fields: Document) -> Any:
    """Return a tree in which absent fields have their value."""
    if isinstance(tree, list):
        return [with_fields(item, f"{path}[]", fields) for item in tree]
    if not isinstance(tree, dict):
        return tree
    prefix = f"{path}." if path else ""
    result = {key: with_fields(value, f"{prefix}{key}", fields) for key, value in tree.items()}
    for name, value in fields.items():
        parent, _, key = name.rpartition(".")
        if parent == path:
            result.setdefault(key, copy.deepcopy(value))
    return result


def printed(tree: Any, key: str = "") -> Any:
    """Return a tree as Go's encoder writes it: zero values left out unless the type is a pointer,
    quantities in their canonical form."""
    if isinstance(tree, list):
        return [printed(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    is_quantity = key in {"requests", "limits"}
    result = {}
    for name, value in tree.items():
        if is_quantity or (name in {"sizeLimit", "size"} and not isinstance(value, dict)):
            result[name] = canonical(str(value))
        elif value or name in KUBERAY["zeros_kept"]:
            result[name] = printed(value, name)
    return result


def canonical(quantity: str) -> str:
    """Return a quantity as Kubernetes prints it: whole, with the largest suffix for that."""
    number = quantity.rstrip("KMGTPikm")
    suffix = quantity.removeprefix(number)
    units: dict[str, Any] = BINARY if suffix.endswith("i") else DECIMAL
    value = Decimal(number) * units[suffix]
    fitting = [name for name, unit in units.items() if value % unit == 0]
    assert fitting, f"{quantity} would be rounded"
    largest = fitting[-1] if value else ""
    return f"{(value / units[largest]).to_integral_value():f}{largest}"


def changed_by_operator(sent: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Yield the paths that the operator takes over, so that the next server-side apply conflicts:
    rendered values that it changed, and every change in a list, which it owns whole. What it adds
    outside of lists is its own."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        for key, value in sent.items():
            if key not in kept:
                yield f"{path}.{key} is dropped"
            else:
                yield from changed_by_operator(value, kept[key], f"{path}.{key}")
        if "[" in path:
            yield from (f"{path}.{key} is added" for key in kept.keys() - sent.keys())
    elif isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        for n, (one, other) in enumerate(zip(sent, kept, strict=True)):
            yield from changed_by_operator(one, other, f"{path}[{n}]")
    elif sent != kept:
        yield f"{path}: {sent!r} becomes {kept!r}"


def compared(service: Document) -> Document:
    """Return the part of a RayService whose change makes KubeRay start a new Ray cluster."""
    cluster: Document = copy.deepcopy(service["spec"]["rayClusterConfig"])
    for group in cluster["workerGroupSpecs"]:
        for name in KUBERAY["not_compared"]["workerGroupSpecs[]"]:
            group.pop(name, None)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for name in KUBERAY["not_compared"]["template.spec"]:
            group["template"]["spec"].pop(name, None)
    return cluster


@dataclass(frozen=True)
class Pod:
    """A ready pod of a Ray cluster."""

    group: str
    labels: dict[str, str]
    ports: dict[str, int]


def pods(service: Document, cluster: str) -> list[Pod]:
    """One pod per group of a Ray cluster, with the labels that KubeRay adds. Every worker gets
    `ray.io/serve`, whatever its template says."""
    config = service["spec"]["rayClusterConfig"]
    groups = {"head": config["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in config["workerGroupSpecs"]}
    made = []
    for name, group in groups.items():
        is_worker = name != "head"
        labels = group["template"]["metadata"]["labels"] | {
            "ray.io/cluster": cluster,
            "ray.io/group": name,
            "ray.io/node-type": "worker" if is_worker else "head",
            "ray.io/serve": str(is_worker).lower(),
        }
        ports = group["template"]["spec"]["containers"][0]["ports"]
        numbers = {port["name"]: port["containerPort"] for port in ports}
        made.append(Pod(name, labels, numbers))
    return made


def services_of_kuberay(service: Document, cluster: str) -> list[Document]:
    """The Service of a Ray cluster through which KubeRay sends clients. In upgrades by steps it has
    the head's port `serve`, name and number only, and ignores `serveService`."""
    config = service["spec"]["rayClusterConfig"]
    selector = {"ray.io/cluster": cluster, "ray.io/serve": "true"}
    if service["spec"]["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade":
        (port,) = (
            {"name": port["name"], "port": port["containerPort"]}
            for port in config["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
            if port["name"] == "serve" or port["name"].startswith("serve-")
        )
        return [{"spec": {"selector": selector, "ports": [port]}}]
    own = copy.deepcopy(service["spec"]["serveService"]["spec"])
    default = [{"name": "serve", "port": 8000}]
    ports = [port for port in own.get("ports", default) if port["name"] == "serve"]
    return [{"spec": own | {"selector": selector, "ports": ports}}]


def endpoints(service: Document, of: list[Pod]) -> set[tuple[str, int]]:
    """The group and the port of each endpoint of a Service, as Kubernetes computes them: a pod
    without the named port is left out, a number is taken without asking the pod."""
    found = set()
    for pod in of:
        if service["spec"]["selector"].items() <= pod.labels.items():
            for port in service["spec"]["ports"]:
                target = port.get("targetPort", port["port"])
                number = pod.ports.get(target) if isinstance(target, str) else target
                if number is not None:
                    found.add((pod.group, number))
    return found
