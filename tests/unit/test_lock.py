"""The locks in requirements/ follow from pyproject.toml, and leave nothing open."""

from __future__ import annotations

import itertools
import json
import re
from importlib import metadata
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.ci_scripts import lock

FILES = sorted(path.name for path in lock.LOCKS.glob("*.txt"))
DEVELOPMENT = ("torch-cpu.txt", "cpu.txt", "dev.txt")
LOCKS_OF = {
    None: ("cpu.txt",),
    "cpu": ("torch-cpu.txt", "cpu.txt"),
    "dev": DEVELOPMENT,
    "chart": DEVELOPMENT,
    "peers": (*DEVELOPMENT, "peers.txt"),
    "cuda": ("cuda.txt",),
}
SEEN = ("3.11", "x86_64")
"""The one machine whose CPU build of torch has a hash in the lock at least."""


def pinned(files: tuple[str, ...], python: str, machine: str) -> dict[str, list[str]]:
    """Versions that one machine would install, by package."""
    found: dict[str, list[str]] = {}
    for pin in itertools.chain.from_iterable(map(lock.read, files)):
        if pin.applies(python, machine):
            found.setdefault(pin.name, []).append(pin.version)
    return found


def unmet(texts: list[str], pins: dict[str, list[str]]) -> list[str]:
    """The requirements that a lock does not satisfy."""
    wanted = map(Requirement, texts)
    return [
        str(one)
        for one in wanted
        if not any(
            one.specifier.contains(version, prereleases=True)
            for version in pins.get(canonicalize_name(one.name), ())
        )
    ]


def test_every_extra_has_a_lock() -> None:
    extras = lock.project()["project"]["optional-dependencies"]
    assert set(LOCKS_OF) - {None} == set(extras)


@pytest.mark.parametrize("name", [*FILES, "../helm/image/constraints.txt"])
def test_a_changed_range_needs_make_lock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = (lock.LOCKS / name).read_text(encoding="utf-8")
    assert f" ranges {lock.inputs_digest()}\n" in written, "run: make lock"
    tree = lock.project()
    tree["project"]["dependencies"][1] = "aiohttp>=3.14.1"
    monkeypatch.setattr(lock, "project", lambda: tree)
    assert lock.inputs_digest() not in written


@pytest.mark.parametrize("extra", LOCKS_OF)
@pytest.mark.parametrize("python", lock.PYTHONS)
@pytest.mark.parametrize("machine", lock.MACHINES)
def test_the_pins_are_within_the_ranges(extra: str | None, python: str, machine: str) -> None:
    pins = pinned(LOCKS_OF[extra], python, machine)
    missing = [text for text in unmet(lock.ranges(extra), pins) if "torch" not in text]
    assert missing == []
    assert [name for name, versions in pins.items() if len(versions) > 1] == []
    if extra == "cuda" or (python, machine) == SEEN:
        assert unmet(lock.ranges(extra), pins) == []


def test_a_pin_outside_a_range_is_found() -> None:
    pins = {"aiohttp": ["3.13.0"], "numpy": ["2.4.0"]}
    assert unmet(["aiohttp>=3.14", "numpy>=2.3", "rich>=14.0"], pins) == [
        "aiohttp>=3.14",
        "rich>=14.0",
    ]


@pytest.mark.parametrize("name", FILES)
def test_each_pin_has_hashes_and_no_address(name: str) -> None:
    pins = lock.read(name)
    assert pins
    for pin in pins:
        assert pin.hashes, pin.name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in pin.hashes)
    text = (lock.LOCKS / name).read_text(encoding="utf-8")
    assert re.findall(r"://|@ |^--.*|\S+\.(?:org|com|io)\b|(?<=\s)/\S+", text, re.MULTILINE) == []


def test_locks_cover_the_requirements_of_installed_packages() -> None:
    """Follows the metadata of this environment, of each package that has its locked version."""
    pins = pinned((*DEVELOPMENT, "model.txt"), *SEEN)
    known = {name: versions[0] for name, versions in pins.items()} | {"torch": lock.torch_version()}
    texts = itertools.chain.from_iterable(map(lock.ranges, (None, "cpu", "dev", "chart")))
    ahead = [Requirement(text) for text in texts]
    missing, followed = [], set()
    while ahead:
        one = ahead.pop()
        name = canonicalize_name(one.name)
        if name in lock.TORCH_COMPANIONS:
            continue
        if name not in known or not one.specifier.contains(known[name], prereleases=True):
            missing.append(str(one))
        elif (name, *one.extras) not in followed:
            followed.add((name, *one.extras))
            ahead += needs_of(name, known[name], one.extras)
    assert missing == []
    assert len(followed) > len(lock.ranges())


def needs_of(name: str, version: str, extras: set[str]) -> list[Requirement]:
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return []
    if package.version != version:  # as in build/newest
        return []
    needs = map(Requirement, package.requires or ())
    return [
        one
        for one in needs
        if one.marker is None
        or any(one.marker.evaluate({"extra": extra}) for extra in (*extras, ""))
    ]


@pytest.mark.parametrize("folder", ["chart", "tokenizer", "watch"])
def test_npm_s_locks_have_an_integrity_for_each_package_and_no_address(folder: str) -> None:
    files = lock.LOCKS / "npm" / folder
    manifest = json.loads((files / "package.json").read_text(encoding="utf-8"))
    tree: dict[str, Any] = json.loads((files / "package-lock.json").read_text(encoding="utf-8"))
    packages = tree["packages"]
    root = packages.pop("")
    assert root["dependencies"] == manifest["dependencies"]
    for name, version in manifest["dependencies"].items():
        assert packages[f"node_modules/{name}"]["version"] == version
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package


def test_a_pin_that_some_machines_need_has_a_marker_for_them() -> None:
    found = {
        target: [lock.Pin("one", "1", "", ()), lock.Pin("two", version, "", ())]
        + [lock.Pin("mkl", "3", "", ())] * (target[1] == "x86_64")
        + [lock.Pin("odd", "4", "", ())] * (target in {("3.11", "aarch64"), ("3.13", "x86_64")})
        for target in lock.TARGETS
        for version in ["2" if target[0] == "3.13" else "1"]
    }
    merged = lock.merged(found)
    assert {f"{pin.name}=={pin.version}": pin.marker for pin in merged} == {
        "one==1": "",
        "two==1": "(python_version == '3.11' or python_version == '3.12')",
        "two==2": "python_version == '3.13'",
        "mkl==3": "platform_machine == 'x86_64'",
        "odd==4": "python_version == '3.11' and platform_machine == 'aarch64'"
        " or python_version == '3.13' and platform_machine == 'x86_64'",
    }
    for target, pins in found.items():
        names = [(pin.name, pin.version) for pin in merged if pin.applies(*target)]
        assert sorted(names) == sorted((pin.name, pin.version) for pin in pins)


def test_a_lock_that_is_read_and_written_is_the_same() -> None:
    text = (lock.LOCKS / "dev.txt").read_text(encoding="utf-8")
    body = "".join(map(str, lock.pins(text)))
    assert text.endswith(body)
    assert body.count("\n") > 100
