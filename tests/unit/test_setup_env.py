"""The set-up of .venv: where torch comes from, what pip is asked, and how a failure reads."""

from __future__ import annotations

import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.ci_scripts import setup_env

PIP = """#!/bin/sh
# Logs its arguments. What the file answer-N has, if anything, is the failure of call N.
echo "$@" >> {folder}/calls
count=$(wc -l < {folder}/calls)
[ -s {folder}/answer-$count ] && cat {folder}/answer-$count && exit 1
exit 0
"""
NO_TORCH = """ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu \
(from versions: 2.12.0, 2.13.0)
ERROR: No matching distribution found for torch==2.13.0+cpu
"""


@pytest.fixture
def environment(tmp_path: Path) -> Any:
    """An environment whose Python answers as the test says."""
    made = setup_env.Environment(tmp_path)
    made.python.parent.mkdir()
    made.python.write_text(PIP.format(folder=tmp_path))
    made.python.chmod(made.python.stat().st_mode | stat.S_IXUSR)
    return made


def answers(environment: Any, *texts: str) -> None:
    for number, text in enumerate(texts, 1):
        (environment.folder / f"answer-{number}").write_text(text)


def calls(environment: Any) -> list[str]:
    text: str = (environment.folder / "calls").read_text()
    return [line.removeprefix("-m pip ").removesuffix(" --no-input") for line in text.splitlines()]


def test_cpu_torch_from_pips_settings_is_used(environment: Any) -> None:
    setup_env.install_torch(environment, ["torch==2.13.0+cpu"])
    assert calls(environment) == ["install --no-deps torch==2.13.0+cpu"]


def test_pytorchs_own_index_is_the_fallback(
    environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(environment, NO_TORCH)
    setup_env.install_torch(environment, ["torch==2.13.0+cpu"])
    assert calls(environment)[1:] == [
        "install --no-deps --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu"
    ]
    assert "trying https://download.pytorch.org/whl/cpu" in capsys.readouterr().out


def test_missing_torch_is_one_sentence(environment: Any) -> None:
    answers(environment, NO_TORCH, NO_TORCH)
    with pytest.raises(setup_env.SetupError, match="with pip's settings or on"):
        setup_env.install_torch(environment, ["torch==2.13.0+cpu"])


def test_another_failure_of_torch_does_not_ask_a_second_index(environment: Any) -> None:
    answers(environment, "ERROR: [Errno 28] No space left on device\n")
    with pytest.raises(setup_env.SetupError, match="disk is full"):
        setup_env.install_torch(environment, ["torch==2.13.0+cpu"])
    assert len(calls(environment)) == 1


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("NewConnectionError(...)\nERROR: No matching distribution found for rich", "reach a pack"),
        (
            "(from versions: none)\nERROR: No matching distribution found for rich==1",
            "reach a pack",
        ),
        ("(from versions: 1.0)\nERROR: No matching distribution found for rich==9", "make lock"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "requirements/ locks"),
        ("Segmentation fault", "pip failed; its last lines are above"),
    ],
)
def test_a_failure_of_pip_is_one_sentence_with_a_next_step(
    environment: Any, output: str, sentence: str
) -> None:
    with pytest.raises(setup_env.SetupError) as caught:
        environment.check(output)
    assert sentence in str(caught.value)
    assert str(environment.log) in str(caught.value)


def test_everything_but_torch_comes_from_the_locks(environment: Any) -> None:
    setup_env.install_locked(environment)
    torch, *locked, project = calls(environment)[:4]
    assert torch.startswith("install --no-deps ")
    assert project.startswith("install --no-deps --no-build-isolation --editable ")
    for call in locked:
        assert call.startswith("install --no-deps --require-hashes ")
    files = re.findall(r"requirements/(\S+)", " ".join(locked))
    assert files == ["cpu.txt", "model.txt", "dev.txt"]


@pytest.mark.parametrize(
    ("python", "machine", "is_hashed"),
    [((3, 11), "x86_64", True), ((3, 11), "riscv64", False), ((3, 10), "x86_64", False)],
)
def test_torch_is_hashed_if_the_lock_knows_the_file(
    monkeypatch: pytest.MonkeyPatch, python: tuple[int, int], machine: str, is_hashed: bool
) -> None:
    monkeypatch.setattr(setup_env.sys, "version_info", python)
    monkeypatch.setattr(setup_env.platform, "machine", lambda: machine)
    asked = setup_env.locked_torch()
    assert ("--require-hashes" in asked) == is_hashed
    assert asked[-1].endswith("torch-cpu.txt" if is_hashed else "+cpu")


@pytest.mark.parametrize("name", ["torch-cpu.txt", "cpu.txt", "model.txt", "dev.txt"])
def test_a_changed_lock_sets_up_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = setup_env.wanted()
    shutil.copytree(setup_env.LOCKS, tmp_path / "locks")
    monkeypatch.setattr(setup_env, "LOCKS", tmp_path / "locks")
    assert setup_env.wanted() == before
    with (tmp_path / "locks" / name).open("a") as lock:
        lock.write("more==1\n")
    assert setup_env.wanted() != before
