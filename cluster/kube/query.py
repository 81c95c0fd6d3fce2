"""Queries for objects of the Kubernetes API, and their paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GROUPS: Final = {"nodes": "api/v1", "pods": "api/v1", "events": "api/v1"}
RAY: Final = "apis/ray.io/v1"


@dataclass(frozen=True)
class Query:
    """Objects of one resource in the cluster or in a namespace, filtered by selectors."""

    resource: str
    namespace: str | None = None
    labels: str = ""
    fields: str = ""

    def path(self, name: str = "") -> str:
        scope = "" if self.namespace is None else f"/namespaces/{self.namespace}"
        group = GROUPS.get(self.resource, RAY)
        return f"/{group}{scope}/{self.resource}" + (f"/{name}" if name else "")

    @property
    def selectors(self) -> dict[str, str]:
        chosen = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {key: value for key, value in chosen.items() if value}


RAY_RESOURCES = frozenset({"rayclusters", "rayservices"})


def resource_name(resource: str) -> str:
    """Name of a resource as in `kubectl` and RBAC rules."""
    return f"{resource}.ray.io" if resource in RAY_RESOURCES else resource
