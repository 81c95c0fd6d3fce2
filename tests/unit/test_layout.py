"""Holds the rules of the tree that no linter knows: links, namespace portions, who imports what."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PORTIONS = ("cluster", "deployments", "kernels", "loadtest")
HEAVY = ("torch", "ray", "vllm", "numpy", "transformers")


ROOMS = sorted(
    path for portion in PORTIONS for path in (ROOT / portion).iterdir() if any(path.glob("*.py"))
)


def modules_of(portion: str) -> list[str]:
    paths = (ROOT / portion).rglob("*.py")
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)


def run_python(
    code: str, *arguments: str, path: tuple[Path, ...] = (ROOT,)
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, outside the checkout, with `path` first on sys.path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
        check=False,
    )


def imported_names(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(), str(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("portion", PORTIONS)
def test_folder_is_a_namespace_portion(portion: str) -> None:
    assert not (ROOT / portion / "__init__.py").exists()


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_room_has_a_docstring_and_no_code_in_its_init(room: Path) -> None:
    tree = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    assert len(tree.body) == 1
    assert len((ast.get_docstring(tree) or "").split()) >= 12


@pytest.mark.parametrize("portion", PORTIONS)
def test_link_leads_to_its_folder(portion: str) -> None:
    assert os.readlink(ROOT / "qwenfleet" / portion) == f"../{portion}"
    assert (ROOT / "qwenfleet" / portion).is_dir()


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="needs git and a git checkout",
)
def test_git_tracks_the_links_as_links() -> None:
    listing = subprocess.check_output(["git", "ls-files", "-s", "qwenfleet"], cwd=ROOT, text=True)
    links = {line.split("\t")[1] for line in listing.splitlines() if line.startswith("120000 ")}
    assert links == {f"qwenfleet/{portion}" for portion in PORTIONS}


@pytest.mark.timeout(120)
def test_transformers_imports_with_the_repository_root_first_on_the_path() -> None:
    done = run_python("import transformers.modeling_utils")
    assert done.returncode == 0, done.stderr


def test_an_installed_package_named_kernels_is_not_hidden(tmp_path: Path) -> None:
    installed = tmp_path / "kernels" / "__init__.py"
    installed.parent.mkdir()
    installed.touch()
    done = run_python("import kernels; print(kernels.__file__)", path=(ROOT, tmp_path))
    assert done.stdout.strip() == str(installed), done.stderr


def test_cluster_imports_nothing_heavy() -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1].split(): importlib.import_module('qwenfleet.' + name)\n"
        f"print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    done = run_python(code, " ".join(modules_of("cluster")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_every_import_of_ours_goes_by_its_qwenfleet_name() -> None:
    strays = {
        f"{source.relative_to(ROOT)}: {name}"
        for folder in (*PORTIONS, "qwenfleet", "tests")
        for source in (ROOT / folder).rglob("*.py")
        for name in imported_names(source)
        if name.split(".")[0] in PORTIONS
    }
    assert not strays


@pytest.mark.timeout(120)
def test_wheel_holds_every_module_once(tmp_path: Path) -> None:
    """Built from a copy, since setuptools writes into the tree it builds."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (*PORTIONS, "qwenfleet"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=copy, check=True, capture_output=True
    )
    wheel = zipfile.ZipFile(next(tmp_path.glob("qwenfleet-*.whl")))
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    ours = {
        f"qwenfleet/{source.relative_to(ROOT)}"
        for portion in PORTIONS
        for source in (ROOT / portion).rglob("*.py")
    }
    own = {str(source.relative_to(ROOT)) for source in (ROOT / "qwenfleet").rglob("[!.]*.py")}
    assert packed == ours | own


def test_console_script_answers() -> None:
    script = Path(sys.executable).with_name("qwenfleet")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout
