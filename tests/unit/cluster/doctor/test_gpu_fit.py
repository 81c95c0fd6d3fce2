"""Judgments on GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwenfleet.cluster.doctor import gpu_fit
from qwenfleet.cluster.doctor.finding import Finding, Level
from qwenfleet.cluster.doctor.gpus import Gpu, Gpus
from qwenfleet.cluster.doctor.packages import Package

CPU = Package("torch", "2.13.0+cpu", build="cpu")
CUDA = Package("torch", "2.13.0", build="cuda", device_version="12.8")
CUDA_13 = Package("torch", "2.13.0+cu130", build="cuda", device_version="13.0")
ROCM = Package("torch", "2.13.0+rocm7.0", build="rocm", device_version="7.0.2")
H100 = Gpus(
    nvidia=(Gpu("NVIDIA H100", 81559),) * 2,
    nvidia_driver="570.133.20",
    on_bus=(2, 0),
    seen_by_torch=2,
)
MI300X = Gpus(amd=(Gpu("gfx942"),) * 8, amd_driver="6.12.12", on_bus=(0, 8), seen_by_torch=8)


def only(found: Gpus, torch: Package | None, level: Level, *, is_node: bool = False) -> str:
    findings: list[Finding] = gpu_fit.judge(found, torch, is_node=is_node)
    (finding,) = findings
    assert finding.level is level, finding
    return f"{finding.sentence}. {finding.remedy}"


@pytest.mark.parametrize("torch", [CPU, None])
def test_no_gpu_is_ok_for_a_cpu_build(torch: Package | None) -> None:
    assert "CPU only" in only(Gpus(), torch, Level.OK)


def test_gpus_that_torch_sees_are_ok_and_named() -> None:
    assert only(H100, CUDA, Level.OK) == "2 x NVIDIA H100 79 GiB (driver 570.133.20). "
    assert "8 x gfx942 (driver 6.12.12)" in only(MI300X, ROCM, Level.OK)


def test_a_cpu_build_next_to_gpus_is_a_note() -> None:
    assert "`cuda`" in only(replace(H100, seen_by_torch=None), CPU, Level.NOTE)


@pytest.mark.parametrize("torch", [CUDA, ROCM])
def test_a_gpu_build_without_a_gpu_is_a_problem_here_and_a_note_on_a_node(
    torch: Package,
) -> None:
    assert "`cpu`" in only(Gpus(), torch, Level.PROBLEM)
    assert "`cpu`" in only(Gpus(), torch, Level.NOTE, is_node=True)


def test_a_driver_older_than_torchs_cuda_is_a_problem() -> None:
    reported = only(H100, CUDA_13, Level.PROBLEM)
    assert "580" in reported
    assert "570.133.20" in reported


def test_gpus_that_a_variable_hides_are_a_note() -> None:
    hidden = replace(H100, hidden_by="CUDA_VISIBLE_DEVICES", seen_by_torch=0)
    assert "Unset CUDA_VISIBLE_DEVICES" in only(hidden, CUDA, Level.NOTE)


@pytest.mark.parametrize(("seen", "level"), [(0, Level.PROBLEM), (1, Level.NOTE)])
def test_gpus_that_only_the_driver_sees_are_reported(seen: int, level: Level) -> None:
    assert f"torch sees {seen}" in only(replace(H100, seen_by_torch=seen), CUDA, level)


def test_a_user_without_access_to_the_kfd_reads_which_groups_give_it() -> None:
    assert "`render`" in only(replace(MI300X, can_open_kfd=False), ROCM, Level.PROBLEM)


def test_a_gpu_without_a_driver_is_a_note() -> None:
    assert "1 NVIDIA GPU on" in only(Gpus(on_bus=(1, 0)), CPU, Level.NOTE)
    assert "2 AMD GPUs on" in only(Gpus(on_bus=(0, 2)), CPU, Level.NOTE)


def test_the_error_of_nvidia_smi_is_quoted() -> None:
    broken = Gpus(nvidia_error="couldn't communicate with the NVIDIA driver", on_bus=(1, 0))
    assert "couldn't communicate" in only(broken, CPU, Level.NOTE)
