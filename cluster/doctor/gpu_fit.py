"""Findings on whether torch can use the GPUs of this machine."""

from __future__ import annotations

from collections import Counter

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok, problem
from qwenfleet.cluster.doctor.gpus import Gpu, Gpus
from qwenfleet.cluster.doctor.packages import Package

LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""NVIDIA's oldest driver branch for each major CUDA: "Minor Version Compatibility", table 1, in
NVIDIA's CUDA Compatibility guide."""
NO_GPU_WHEEL = "For CPU models install the extra `cpu` instead of `cuda`."


def judge(gpus: Gpus, torch: Package | None, *, is_node: bool) -> list[Finding]:
    """Findings about the GPUs. A cluster's node without a GPU may still run gateways."""
    found = [*_judge_reach(gpus), *_judge_visibility(gpus)]
    build = torch.build if torch else ""
    if build == "cuda" and torch:
        found += _judge_cuda(gpus, torch, is_node=is_node)
    elif build == "rocm" and torch:
        found += _judge_rocm(gpus, torch, is_node=is_node)
    elif gpus.nvidia or gpus.amd:
        sentence = f"{_summary(gpus)}: the installed torch is built for CPU and cannot use them"
        remedy = (
            "If engines should use them, install the project with its extra `cuda` instead of "
            "`cpu` (AMD: a vLLM and a torch that are built for ROCm)."
        )
        found.append(note(Subject.GPU, sentence, remedy))
    if found:
        return found
    return [ok(Subject.GPU, _summary(gpus) or "no GPU found: engines run models on the CPU only")]


def _judge_reach(gpus: Gpus) -> list[Finding]:
    """Findings about GPUs on the PCI bus that no driver reports."""
    findings = []
    if gpus.nvidia_error:
        sentence = f"nvidia-smi finds no GPU: {gpus.nvidia_error}"
        remedy = (
            "Load or install NVIDIA's driver; in a container, start it with the NVIDIA runtime."
        )
        findings.append(note(Subject.GPU, sentence, remedy))
    missing = {
        "NVIDIA": gpus.on_bus[0] if not gpus.nvidia and not gpus.nvidia_error else 0,
        "AMD": gpus.on_bus[1] if not gpus.amd else 0,
    }
    for maker, count in missing.items():
        if count:
            sentence = f"found {_cards(count, maker)} on the PCI bus without a compute driver"
            remedy = f"Install {maker}'s driver. Ignore this if they only drive a display."
            findings.append(note(Subject.GPU, sentence, remedy))
    return findings


def _judge_visibility(gpus: Gpus) -> list[Finding]:
    if not gpus.hidden_by or not (gpus.nvidia or gpus.amd):
        return []
    sentence = f"{_summary(gpus)}: hidden from every engine because {gpus.hidden_by} lists none"
    return [note(Subject.GPU, sentence, f"Unset {gpus.hidden_by}.")]


def _judge_cuda(gpus: Gpus, torch: Package, *, is_node: bool) -> list[Finding]:
    built = f"torch {torch.version} is built for CUDA {torch.device_version}".rstrip()
    if not gpus.nvidia:
        judge = note if is_node else problem
        sentence = f"{built}, and this machine has no usable NVIDIA GPU: engines cannot run here"
        return [judge(Subject.GPU, sentence, NO_GPU_WHEEL)]
    least = LEAST_DRIVERS.get(_major(torch.device_version), 0)
    if 0 < _major(gpus.nvidia_driver) < least:
        sentence = (
            f"{built}, which needs driver {least} or newer, and {gpus.nvidia_driver} is installed"
        )
        remedy = f"Install NVIDIA's driver branch {least} or newer."
        return [problem(Subject.GPU, sentence, remedy)]
    return _judge_count(gpus, gpus.nvidia)


def _judge_rocm(gpus: Gpus, torch: Package, *, is_node: bool) -> list[Finding]:
    built = f"torch {torch.version} is built for ROCm {torch.device_version}".rstrip()
    if not gpus.amd:
        judge = note if is_node else problem
        sentence = f"{built}, and this machine has no usable AMD GPU: engines cannot run here"
        return [judge(Subject.GPU, sentence, NO_GPU_WHEEL)]
    if not gpus.can_open_kfd:
        sentence = f"{_summary(gpus)}: this user has no permission to open /dev/kfd"
        remedy = "Add the user to the groups `render` and `video`, then log in again."
        return [problem(Subject.GPU, sentence, remedy)]
    return _judge_count(gpus, gpus.amd)


def _judge_count(gpus: Gpus, present: tuple[Gpu, ...]) -> list[Finding]:
    if gpus.hidden_by or gpus.seen_by_torch is None or gpus.seen_by_torch >= len(present):
        return []
    sentence = f"{_summary(gpus)}: torch sees {gpus.seen_by_torch} of them"
    remedy = (
        "Run `python -c 'import torch; torch.cuda.init()'` for the reason. MIG slices and "
        "*_VISIBLE_DEVICES hide GPUs too."
    )
    judge = note if gpus.seen_by_torch else problem
    return [judge(Subject.GPU, sentence, remedy)]


def _cards(count: int, maker: str) -> str:
    return f"{count} {maker} GPU{'' if count == 1 else 's'}"


def _summary(gpus: Gpus) -> str:
    """GPUs by name with their driver; empty without a GPU."""
    parts = []
    for present, driver in ((gpus.nvidia, gpus.nvidia_driver), (gpus.amd, gpus.amd_driver)):
        if present:
            cards = ", ".join(f"{count} x {name}" for name, count in _names(present).items())
            parts.append(f"{cards} (driver {driver or 'unknown'})")
    return " and ".join(parts)


def _names(gpus: tuple[Gpu, ...]) -> Counter[str]:
    return Counter(
        f"{gpu.name} {gpu.memory_mib // 1024} GiB" if gpu.memory_mib else gpu.name for gpu in gpus
    )


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0
