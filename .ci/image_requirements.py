"""Resolves what helm/image/Dockerfile installs, in each flavour, and installs nothing.

Reads the Dockerfile and the files that it copies, and asks the package indexes that pip uses here,
for the images' Python and for x86_64. Fails with the resolver's explanation if two packages of one
environment want versions of a third that do not meet, if an index lacks a locked file, or if the
CPU image would get a package that `make serve` does not.

What it cannot see: vLLM's images hold CUDA or ROCm and packages at versions of their own. In place
of them stand vLLM's requirements: those of its wheel for CUDA, and requirements/rocm.txt of its
source package for ROCm, whose builds of torch and triton are on no index that pip reads.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import lock

WORK: Final = lock.WORK.with_name("image")
RECIPE: Final = lock.ROOT / "helm" / "image" / "Dockerfile"
FLAVOURS: Final = ("cpu", "cuda", "rocm")
MACHINE: Final = "x86_64"
GLIBC: Final = "2_35"
"""The C library of Ubuntu 22.04, which vLLM's images are built on; Debian 12 has 2.36."""
PROJECT: Final = "qwenfleet-*.whl"
MAIN: Final = "main"
"""The environment of the image's own Python."""
PIP_DEFAULT: Final = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
"""Prints the index of a pip without settings, in a process of its own: pip loads setuptools, which
refuses to replace distutils where that was imported before."""
VLLM_TAG: Final = re.compile(r"ARG (CUDA|ROCM)_BASE=\S+:v(\S+)")


@dataclass(frozen=True)
class Install:
    """One `pip install` of the recipe, with the files of this checkout in place of the copies."""

    environment: str
    requirements: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    constraints: tuple[Path, ...] = ()
    is_whole: bool = True
    """False with --no-deps."""
    has_hashes: bool = False


@dataclass
class Stage:
    """The instructions of one stage of a Dockerfile."""

    base: str
    name: str
    runs: list[str] = field(default_factory=list)
    copies: dict[str, Path] = field(default_factory=dict)


def stages(recipe: str, root: Path) -> list[Stage]:
    """Return the stages of a Dockerfile in order."""
    text = re.sub(r"^\s*#.*\n", "", recipe, flags=re.MULTILINE)
    found: list[Stage] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, *name = rest.split()
            found.append(Stage(base, name[-1] if name else ""))
        elif word == "COPY":
            *sources, folder = rest.split()
            for source in sources:
                found[-1].copies[folder + Path(source).name] = root / source
        elif word == "RUN":
            found[-1].runs.append(rest)
    return found


def installs(recipe: str, flavour: str, root: Path = lock.ROOT) -> list[Install]:
    """Return every `pip install` of one flavour: those of its base, then the common ones.

    Raises ValueError for an option that this script does not know, because it could change what is
    installed."""
    every = stages(recipe, root)
    of_flavour = [stage for stage in every if stage.name == f"base-{flavour}"]
    return [
        _install(command, stage)
        for stage in [*of_flavour, every[-1]]
        for run in stage.runs
        for command in (shlex.split(part) for part in run.split("&&"))
        if command[0] == "pip"
    ]


def _install(command: Sequence[str], stage: Stage) -> Install:
    words: Iterator[str] = iter(command[1:])
    environment, requirements, files, constraints = MAIN, [], [], []
    flags: set[str] = set()
    for word in words:
        if word == "--python":
            environment = next(words)
        elif word == "-r":
            files.append(stage.copies[next(words)])
        elif word == "--constraint":
            constraints.append(stage.copies[next(words)])
        elif word in ("install", "--no-cache-dir", "--no-deps", "--require-hashes"):
            flags.add(word)
        elif word.startswith("-"):
            raise ValueError(f"the Dockerfile gives pip {word}: teach image_requirements.py first")
        else:
            requirements.append(word)
    return Install(
        environment,
        tuple(requirements),
        tuple(files),
        tuple(constraints),
        "--no-deps" not in flags,
        "--require-hashes" in flags,
    )


def locked(found: Sequence[Install]) -> list[str]:
    """Return what installs without dependencies put there, each at one version."""
    pins = [
        f"{pin.name}=={pin.version}"
        for one in found
        if not one.is_whole
        for file in one.files
        for pin in lock.pins(file.read_text(encoding="utf-8"))
        if pin.applies(lock.IMAGE_PYTHON, MACHINE)
    ]
    return [*(text for one in found if not one.is_whole for text in one.requirements), *pins]


def asked(found: Sequence[Install]) -> list[str]:
    """Return the requirements whose own requirements pip would install too."""
    texts = [text for one in found if one.is_whole for text in one.requirements]
    needs = lock.ranges()
    return [text for part in texts for text in (needs if Path(part).match(PROJECT) else [part])]


def constraints(found: Sequence[Install]) -> list[str]:
    return [
        f"{pin.name}=={pin.version}"
        for one in found
        for file in one.constraints
        for pin in lock.pins(file.read_text(encoding="utf-8"))
    ]


def uv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("uv")
    command = [program, "pip", *arguments, *lock.index_options()]
    command += ["--python-version", lock.IMAGE_PYTHON, "--python-platform"]
    command += [f"{MACHINE}-manylinux_{GLIBC}", "--no-python-downloads"]
    settings = {"UV_CACHE_DIR": str(lock.WORK / "cache"), "UV_NO_CONFIG": "1"}
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=os.environ | settings
    )


def resolved(
    name: str, wanted: Sequence[str], bounds: Sequence[str], *options: str | Path
) -> tuple[dict[str, str], str]:
    """Resolve requirements within bounds: versions by name, and what is wrong."""
    source, limits = WORK / f"{name}.in", WORK / f"{name}-bounds.in"
    source.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    limits.write_text("\n".join(bounds) + "\n", encoding="utf-8")
    answer = uv(
        "compile", source, "--constraints", limits, "--no-header", "--no-annotate", *options
    )
    if answer.returncode:
        return {}, answer.stderr.strip()
    return {pin.name: pin.version for pin in lock.pins(answer.stdout)}, ""


def missing_files(found: Sequence[Install]) -> str:
    """Return what pip would say of the locks with hashes, or "" if an index has each file."""
    files = [file for one in found if one.has_hashes for file in one.files]
    if not files:
        return ""
    options = [part for file in files for part in ("-r", file)]
    answer = uv(
        "install", "--dry-run", "--no-deps", "--require-hashes", "--target", WORK / "none", *options
    )
    return answer.stderr.strip() if answer.returncode else ""


def of_vllm(recipe: str, flavour: str) -> list[str]:
    """Return what stands for the packages of vLLM's own image."""
    if flavour == "cpu":
        return []
    versions = dict(VLLM_TAG.findall(recipe))
    version = versions[flavour.upper()]
    if flavour == "cuda":
        return [f"vllm=={version}"]
    text = "\n".join(
        source_file(version, f"requirements/{name}.txt") for name in ("common", "rocm")
    )
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("-r ")]


def source_file(version: str, path: str) -> str:
    """Return a file of vLLM's source package, which is downloaded once."""
    name = f"vllm-{version}.tar.gz"
    archive = WORK / name
    if not archive.exists():
        page = f"{index_url().rstrip('/')}/vllm/"
        asking = {"Accept": "application/vnd.pypi.simple.v1+json"}
        with urllib.request.urlopen(urllib.request.Request(page, headers=asking)) as answer:
            files = json.load(answer)["files"]
        (url,) = (file["url"] for file in files if file["filename"] == name)
        part = archive.with_suffix(".part")
        urllib.request.urlretrieve(url, part)
        part.replace(archive)
    with tarfile.open(archive) as opened:
        member = opened.extractfile(f"vllm-{version}/{path}")
        if member is None:
            raise FileNotFoundError(f"{name} has no {path}")
        return member.read().decode("utf-8")


def index_url() -> str:
    """Return the index that pip reads here."""
    settings = lock.index_options()
    if settings:
        return settings[-1]
    asking = [sys.executable, "-c", PIP_DEFAULT]
    return subprocess.run(asking, capture_output=True, text=True, check=True).stdout.strip()


def torch_stand_in() -> Path:
    """Return a folder with the metadata of the CPU build of torch, whichever Python's pip finds."""
    for python in lock.PYTHONS:
        report = lock.torch_report(python, MACHINE)
        if report is not None:
            return lock.stand_in_for_torch(report["metadata"].get("requires_dist", []))
    raise SystemExit(f"images: pip cannot find torch {lock.torch_version()}")


def problems(recipe: str, flavour: str) -> list[str]:
    """Return what pip would refuse in one flavour; empty if its image can be built."""
    every = installs(recipe, flavour)
    found: list[str] = []
    for environment in dict.fromkeys(one.environment for one in every):
        here = [one for one in every if one.environment == environment]
        pins = locked(here)
        wanted, options = asked(here), list[str | Path]()
        if environment == MAIN:
            wanted += of_vllm(recipe, flavour)
        if any(pin.startswith("torch==") for pin in pins):
            options = ["--find-links", torch_stand_in()]
        alone = {lock.distribution(text) for text in lock.MODEL}
        whole = [pin for pin in pins if lock.distribution(pin) not in alone]
        name = f"{flavour}-{environment.strip('/').replace('/', '-')}"
        versions, complaint = resolved(
            name, [*wanted, *whole], [*pins, *constraints(here)], *options
        )
        found += [text for text in (complaint, missing_files(here)) if text]
        known = {lock.distribution(pin) for pin in pins} | set(lock.TORCH_COMPANIONS)
        more = sorted(versions.keys() - known) if pins else []
        if more:
            found.append(f"pip would add packages that no lock has: {', '.join(more)}")
    return found


def main() -> int:
    lock.enter_own_environment(__file__)
    WORK.mkdir(parents=True, exist_ok=True)
    recipe, failed = RECIPE.read_text(encoding="utf-8"), False
    with ThreadPoolExecutor(len(FLAVOURS)) as pool:  # mostly waiting for the index
        answers = list(pool.map(partial(problems, recipe), FLAVOURS))
    for flavour, found in zip(FLAVOURS, answers, strict=True):
        print(f"image {flavour}: {'does not build' if found else 'resolves'}", flush=True)
        for text in found:
            print(text, file=sys.stderr)
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
