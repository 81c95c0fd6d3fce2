"""The wheel works without the repository: each command, from an empty directory.

The fresh environment has this one's packages by links, and qwenfleet from a wheel that is built
here; pip checks that wheel's requirements against them, without a network. So this proves what the
wheel holds and asks for, on CPU. It does not prove that `qwenfleet[cuda]` installs: that needs 4 GB
from an index, and `make lock` resolves it for each Python into requirements/cuda.txt.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwenfleet.cluster.local.ports import free_ports

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cluster", "deployments", "kernels", "loadtest")
CODE = ("qwenfleet", *FOLDERS, "pyproject.toml", "README.md", "LICENSE")
RUNBOOKS = "helm/runbooks"
"""`cluster/alerts/runbooks` is a link to it."""
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
CONFIG = """
models:
  - id: scripted
    source: tiny-qwen3-moe
    engine: scripted
    max_model_len: 1024
gateway: {{port: {port}}}
"""
START_S = 240


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools would put files of an older build/ into the wheel."""
    source = tmp_path_factory.mktemp("source")
    for name in CODE:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / RUNBOOKS, source / RUNBOOKS)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", source / "dist", source], check=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


class Installed:
    """A Python with the wheel, and an empty directory to run it in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.bin = folder / "venv" / "bin"
        venv.create(folder / "venv", symlinks=True)
        (packages,) = (folder / "venv").glob("lib/python*/site-packages")
        for installed in Path(site.getsitepackages()[0]).iterdir():
            if "qwenfleet" not in installed.name:
                (packages / installed.name).symlink_to(installed)
        command = [str(self.bin / "python"), "-m", "pip", "--isolated", "install", "--quiet"]
        subprocess.run([*command, "--no-index", str(wheel)], check=True)
        self.directory = folder / "empty"
        self.directory.mkdir()
        state = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
        self.environment = os.environ | state | {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        self.environment.pop("PYTHONPATH", None)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_has_each_file_of_the_four_folders_and_no_test(wheel: Path) -> None:
    wanted = {
        f"qwenfleet/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    own = (ROOT / "qwenfleet").glob("*.py"), (ROOT / "qwenfleet" / "cli").glob("*.py")
    wanted |= {str(path.relative_to(ROOT)) for paths in own for path in paths}
    pages = {
        f"qwenfleet/cluster/alerts/runbooks/{path.name}" for path in (ROOT / RUNBOOKS).iterdir()
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {name for name in wanted if not name.endswith(".md")} | pages


def test_the_code_and_vllm_s_plugin_come_from_the_wheel(installed: Installed) -> None:
    code = (
        "import importlib.metadata as metadata, pathlib\n"
        "import qwenfleet.cluster.doctor.packages as packages\n"
        "(plugin,) = metadata.entry_points(group='vllm.general_plugins', name='qwenfleet_resume')\n"
        "print(pathlib.Path(packages.__file__).is_relative_to(pathlib.Path.cwd().parent / 'venv'),"
        "plugin.load().__name__)"
    )
    answer = installed.run("python", "-c", code)
    assert answer.stdout.split() == ["True", "register"], answer.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], f"qwenfleet {VERSION}\n"),
        (["plan", "--model", "qwen3-coder-480b-fp8", "--accelerator", "H200"], "Choice: "),
        (["plan", "--help"], "--accelerator"),
        (["completion", "bash"], "qwenfleet"),
        (["keys", "new"], "sha256:"),
    ],
)
def test_a_command_answers_from_an_empty_directory(
    installed: Installed, arguments: list[str], expected: str
) -> None:
    answer = installed.run("qwenfleet", *arguments)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert expected in answer.stdout


def test_the_plan_s_page_has_its_template(installed: Installed) -> None:
    answer = installed.run("qwenfleet", "plan", "--html", "../plan.html")
    assert answer.returncode == 0, answer.stderr
    page = (installed.directory.parent / "plan.html").read_text(encoding="utf-8")
    assert "</html>" in page
    assert "Qwen3-Coder" in page


def test_doctor_judges_the_environment(installed: Installed) -> None:
    answer = installed.run("qwenfleet", "doctor", "--json")
    assert answer.stderr == ""
    findings: Any = json.loads(answer.stdout)
    assert answer.returncode in (0, 1)  # 1 is a problem of this machine, such as a taken port
    levels = {one["subject"]: one["level"] for one in findings["findings"]}
    assert levels["python"] == levels["ray"] == levels["torch"] == "ok"
    (vllm,) = (one for one in findings["findings"] if one["subject"] == "vllm")
    assert vllm["level"] == "ok"
    assert "qwenfleet_resume" in vllm["sentence"]


@pytest.fixture
def serving(installed: Installed) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """`qwenfleet serve` in a process group of its own; its URL and its log."""
    (port,) = free_ports(1, "127.0.0.1")
    (installed.directory.parent / "fleet.yaml").write_text(CONFIG.format(port=port))
    log = installed.directory.parent / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [installed.bin / "qwenfleet", "serve", "--config", "../fleet.yaml"],
            cwd=installed.directory,
            env=installed.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield process, f"http://127.0.0.1:{port}", log
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_scripted_fleet_serves_and_stops(
    installed: Installed,
    serving: tuple[subprocess.Popen[bytes], str, Path],
    expect: Callable[..., None],
) -> None:
    process, url, log = serving

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        return "ready: http" in log.read_text()

    expect(is_ready, START_S, "the fleet is ready")
    body = {"model": "scripted", "prompt": "x", "max_tokens": 3}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 3, answer.text
    status = installed.run("qwenfleet", "status", "--json")
    assert [engine["state"] for engine in json.loads(status.stdout)["engines"]] == ["ready"]
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=90) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert list(installed.directory.iterdir()) == []
