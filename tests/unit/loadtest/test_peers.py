"""Peers: each one that this environment lacks is named, the others run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qwenfleet.loadtest import peers

PROGRAMS = {"vllm-router": peers._vllm_router, "smg": peers._smg}
RAY_SERVE = [peers._ray_serve_llm, peers._ray_serve_llm_direct]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs of an environment that has no peer."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    return programs


def install(program: Path) -> None:
    program.touch()
    program.chmod(0o755)


def install_pyarrow(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    (directory / "pyarrow.py").touch()
    monkeypatch.delitem(sys.modules, "pyarrow")
    monkeypatch.syspath_prepend(str(directory))


@pytest.mark.usefixtures("environment")
def test_each_that_is_missing_is_named() -> None:
    reported: list[str] = []
    assert peers.installed(reported.append) == []
    assert reported == [
        "vllm-router is not installed, so it is left out",
        "smg is not installed, so it is left out",
        "ray.serve.llm needs pyarrow, which is not installed, so it is left out",
    ]


@pytest.mark.parametrize("name", PROGRAMS)
def test_router_next_to_our_python_is_found(environment: Path, name: str) -> None:
    install(environment / name)
    reported: list[str] = []
    assert peers.installed(reported.append) == [PROGRAMS[name]]
    assert not any(text.startswith(name) for text in reported)
    assert len(reported) == 2


def test_a_router_on_the_path_is_found(environment: Path, tmp_path: Path) -> None:
    install(tmp_path / "smg")
    assert peers.installed(lambda text: None) == [peers._smg]
    assert peers._program("smg") == str(tmp_path / "smg")
    install(environment / "smg")
    assert peers._program("smg") == str(environment / "smg"), "ours comes first"


def test_ray_serve_llm_needs_pyarrow_only(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_pyarrow(monkeypatch, tmp_path)
    reported: list[str] = []
    assert peers.installed(reported.append) == RAY_SERVE
    assert [text.split()[0] for text in reported] == ["vllm-router", "smg"]


def test_nothing_is_reported_if_all_are_installed(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROGRAMS:
        install(environment / name)
    install_pyarrow(monkeypatch, tmp_path)
    reported: list[str] = []
    assert peers.installed(reported.append) == [*PROGRAMS.values(), *RAY_SERVE]
    assert reported == []
