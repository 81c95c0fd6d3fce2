"""Checks a shell command of a page without running it, by the parser of the program that it names.

A check fails by AssertionError, or by whatever the program's own parser raises.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qwenfleet.cli.__main__ import _parser as qwenfleet_parser
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.models.catalog import find_published
from qwenfleet.deployments.__main__ import _parser as deployments_parser
from qwenfleet.deployments.environment import cluster_environment
from qwenfleet.deployments.ingress.http_app import MODEL_ROUTES, OWN_ROUTES
from qwenfleet.loadtest.__main__ import _parser as loadtest_parser
from tests.pages import ROOT, blocks

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = (ROOT / "helm" / "image" / "Dockerfile").read_text(encoding="utf-8")
WHEEL = f"dist/qwenfleet-{PROJECT['version']}-py3-none-any.whl"
TARGETS = set(
    re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
)
ASSIGNMENT = re.compile(r"[A-Z_]+=")
OTHER_VARIABLES = {"HF_HOME", "HF_HUB_CACHE", "RAY_ADDRESS", "RAY_AUTH_MODE"}


def check(words: list[str]) -> None:
    """Fails when the command cannot work, as far as that can be known here."""
    while ASSIGNMENT.match(words[0]):
        check_assignment(words[0])
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/")
    if "/" in program:
        assert os.access(ROOT / program, os.X_OK), f"{program} is not a program of this project"
        return
    checker = CHECKERS.get(program)
    assert checker is not None, f"nothing checks `{program}`: add a check, or mark it as `text`"
    checker(words[1:])


def check_assignment(word: str) -> None:
    """Ray's own variables are those that the chart gives to its pods, at the same values."""
    name, _, value = word.partition("=")
    wanted = cluster_environment(FleetConfig())
    assert name in {*wanted, *OTHER_VARIABLES}, f"nothing reads {name}"
    if name in wanted and "$" not in value:
        assert value == wanted[name]


def check_export(words: list[str]) -> None:
    for word in words:
        check_assignment(word)


def check_qwenfleet(words: list[str]) -> None:
    _parse(qwenfleet_parser, words)


def _parse(parser: Callable[[], Any], words: list[str]) -> None:
    status: Any = 0
    try:
        parser().parse_args(words)
    except SystemExit as ended:  # of --help, or of an error
        status = ended.code
    assert not status, f"it does not take {words}"


def check_make(words: list[str]) -> None:
    targets = [word for word in words if "=" not in word]
    assert targets
    assert TARGETS.issuperset(targets), f"Makefile has no {targets}"


def check_python(words: list[str]) -> None:
    if words[0] == "-c":
        for node in ast.walk(ast.parse(words[1])):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
        return
    assert words[0] == "-m"
    assert importlib.util.find_spec(words[1]) is not None
    if words[1] == "qwenfleet.deployments":
        _parse(deployments_parser, words[2:])
    elif words[1] == "qwenfleet.loadtest":
        _parse(loadtest_parser, words[2:])


def check_pip(words: list[str]) -> None:
    assert words[0] in {"install", "wheel"}
    locks = [file for option, file in itertools.pairwise(words) if option == "-r"]
    assert all((ROOT / lock).is_file() for lock in locks), locks
    if locks:
        return
    things = [word for word in words[1:] if word.startswith((".", "dist/")) and "/" in f"{word}/"]
    assert things, "it names neither the checkout nor its wheel"
    for thing in things:
        path, _, extra = thing.partition("[")
        assert path in {".", WHEEL}
        assert not extra or extra.removesuffix("]") in PROJECT["optional-dependencies"]


def check_hf(words: list[str]) -> None:
    """Its parser is loaded when it runs; what it is asked for is a model of the catalog."""
    from huggingface_hub.cli.hf import app

    command, repository = words
    assert command in app.commands
    known = find_published(repository)
    assert known is not None
    assert known.name == repository


def check_docker(words: list[str]) -> None:
    values = dict(itertools.pairwise(words))
    if words[0] == "run":
        assert f"={words[-1]}\n" in RECIPE, "it is not a base of helm/image/Dockerfile"
        return
    assert words[0] == "build"
    assert words[-1] == "."
    assert (ROOT / values["-f"]).read_text(encoding="utf-8") == RECIPE
    pairs = itertools.pairwise(words)
    arguments = dict(pair.split("=") for option, pair in pairs if option == "--build-arg")
    assert set(re.findall(r"^ARG (\w+)", RECIPE, re.MULTILINE)).issuperset(arguments)
    flavour = arguments["FLAVOUR"]
    assert f"AS base-{flavour}\n" in RECIPE
    assert values["-t"] == f"$REGISTRY/qwenfleet:{PROJECT['version']}-{flavour}"


def check_helm(words: list[str]) -> None:
    assert words[0] in {"install", "upgrade", "test", "rollback", "uninstall"}
    files = [file for option, file in itertools.pairwise(words) if option == "-f"]
    assert {block.file_name for block in blocks("yaml")}.issuperset(files)
    if words[0] in {"install", "upgrade"}:
        assert (ROOT / words[2] / "Chart.yaml").is_file()


def check_kubectl(words: list[str]) -> None:
    assert words[:3] == ["create", "secret", "generic"], "checked for these words only"


def check_ray(words: list[str]) -> None:
    """By Ray's own command line; what a job runs is checked as a command of its own."""
    from ray.scripts.scripts import cli

    command: Any = cli
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context("ray", list(words))
    entrypoint = list(context.params.get("entrypoint", ()))
    if entrypoint:
        check(entrypoint)


def check_curl(words: list[str]) -> None:
    values = dict(itertools.pairwise(words))
    (url,) = (urlsplit(word) for word in words if word.startswith("http://"))
    assert url.path in MODEL_ROUTES | OWN_ROUTES
    if "-d" in values:
        body = json.loads(values["-d"])
        fleets = "\n".join(block.text for block in blocks("yaml"))
        assert f"id: {body['model']}" in fleets, "no fleet on these pages serves it"
        assert values["-H"] == "content-type: application/json"


def check_source(words: list[str]) -> None:
    assert Path(words[0]).name == "activate"


def check_chmod(words: list[str]) -> None:
    """Only secrets are changed, so that their owner alone reads them."""
    assert words[0] == "600"


CHECKERS: dict[str, Callable[[list[str]], None]] = {
    ".": check_source,
    "chmod": check_chmod,
    "curl": check_curl,
    "docker": check_docker,
    "export": check_export,
    "helm": check_helm,
    "hf": check_hf,
    "kubectl": check_kubectl,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "python3": check_python,
    "qwenfleet": check_qwenfleet,
    "ray": check_ray,
}
