"""Fixtures that render the chart with a real helm and validate the result against the schemas of
Kubernetes and KubeRay."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "qwenfleet"
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
CRD = Path(__file__).parent / "kuberay" / "rayservice-v1.json"
HELM_S = 60

Document = dict[str, Any]
Render = Callable[..., list[Document]]


class Refused(Exception):
    """The output of a helm that failed."""


class Helm:
    """Runs the helm program."""

    def __init__(self, program: str) -> None:
        self.program = program

    def run(self, *arguments: str | Path) -> str:
        """Return what helm prints. Raises Refused."""
        done = subprocess.run(
            [self.program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=HELM_S,
            check=False,
        )
        if done.returncode:
            raise Refused(done.stdout + done.stderr)
        return done.stdout

    def template(self, *arguments: str | Path) -> list[Document]:
        text = self.run("template", "coder", CHART, "--namespace", "ml", *arguments)
        return [tree for tree in yaml.safe_load_all(text) if tree]


@pytest.fixture(scope="session")
def helm() -> Helm:
    installed = Path(sys.executable).with_name("helm")
    program = str(installed) if installed.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("helm is missing: `make chart-test` installs it")
    return Helm(program)


@pytest.fixture(scope="session")
def refused() -> type[Refused]:
    return Refused


@pytest.fixture
def render(helm: Helm, tmp_path: Path) -> Render:
    """Render the chart with some values, which override those of a case."""

    def rendered(values: Document | None = None, case: str = "", *options: str) -> list[Document]:
        files = [CHART / "ci" / f"{case}-values.yaml"] if case else []
        if values is not None:
            files.append(tmp_path / "values.yaml")
            files[-1].write_text(yaml.safe_dump(values), encoding="utf-8")
        return helm.template(*(part for file in files for part in ("-f", file)), *options)

    return rendered


def only(documents: list[Document], kind: str, name: str = "") -> Document:
    """Return the only object of a kind, and of a name if several objects have that kind."""
    (found,) = (
        tree
        for tree in documents
        if tree["kind"] == kind and name in {"", tree["metadata"]["name"]}
    )
    return found


@pytest.fixture(scope="session", name="only")
def _only() -> Callable[..., Document]:
    return only


@pytest.fixture(scope="session")
def groups() -> Callable[[list[Document]], dict[str, Document]]:
    """The groups of the RayService by name, the head as `head`."""

    def found(documents: list[Document]) -> dict[str, Document]:
        cluster = only(documents, "RayService")["spec"]["rayClusterConfig"]
        workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        return {"head": cluster["headGroupSpec"], **workers}

    return found


@pytest.fixture(scope="session")
def two_node_model() -> Document:
    """A model of which each engine has the GPUs of two nodes."""
    layout = {
        "tensor_parallel_size": 8,
        "data_parallel_size": 2,
        "expert_parallel": True,
        "nodes": 2,
    }
    source = "/weights/Qwen3-Coder-480B-A35B-Instruct"
    return {"id": "coder", "source": source, "accelerator": "H100", "layout": layout}


@pytest.fixture(scope="session")
def serve_config() -> Callable[[list[Document]], Document]:
    """The Serve configuration in the RayService."""

    def found(documents: list[Document]) -> Document:
        config: Document = yaml.safe_load(only(documents, "RayService")["spec"]["serveConfigV2"])
        return config

    return found


def closed(schema: Any) -> Any:
    """Return a CRD's schema as JSON Schema that refuses unknown keys and allows int-or-string."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if result.pop("x-kubernetes-int-or-string", False):
        result.pop("type", None)
        result.pop("anyOf", None)
        return result | {"type": ["integer", "string"]}
    if "properties" in result and not result.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def completed(tree: Any, schema: Any) -> Any:
    """Return the tree as the API server validates it: without nulls, with defaults filled in."""
    if isinstance(tree, list):
        items = schema.get("items", {})
        return [completed(item, items) for item in tree]
    if not isinstance(tree, dict):
        return tree
    properties = schema.get("properties", {})
    more = schema.get("additionalProperties")
    inner = more if isinstance(more, dict) else {}
    result = {
        key: completed(value, properties.get(key, inner))
        for key, value in tree.items()
        if value is not None
    }
    for key, value in properties.items():
        if key not in result and "default" in value:
            result[key] = copy.deepcopy(value["default"])
    return result


@pytest.fixture(scope="session")
def ray_service_schema() -> Document:
    """The schema of KubeRay's CRD. The file has the pod template and its containers once."""
    recorded = json.loads(CRD.read_text(encoding="utf-8"))
    template = recorded["pod_template"]
    pod = template["properties"]["spec"]["properties"]
    pod["initContainers"] = pod["containers"]
    schema: Document = recorded["schema"]
    cluster = schema["properties"]["spec"]["properties"]["rayClusterConfig"]["properties"]
    for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"]["items"]):
        group["properties"]["template"] = template
    return schema


@pytest.fixture(scope="session")
def check_ray_service(ray_service_schema: Document) -> Callable[[Document], None]:
    """A check that raises jsonschema's ValidationError for what KubeRay's CRD refuses or drops."""
    from jsonschema import Draft202012Validator

    schema = closed(ray_service_schema)
    schema["properties"]["metadata"] = {"type": "object"}
    validator = Draft202012Validator(schema)

    def check(tree: Document) -> None:
        validator.validate(completed(tree, ray_service_schema))

    return check
