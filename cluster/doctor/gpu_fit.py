"""Whether torch can use the GPUs that are there, and where that fails."""

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
    """A cluster's node without a GPU may run gateways, from any wheel."""
    found = [*_judge_reach(gpus), *_judge_visibility(gpus)]
    build = torch.build if torch else ""
    if build == "cuda" and torch:
        found += _judge_cuda(gpus, torch, is_node=is_node)
    elif build == "rocm" and torch:
        found += _judge_rocm(gpus, torch, is_node=is_node)
    elif gpus.nvidia or gpus.amd:
        sentence = f"{_said(gpus)}, which the installed torch, built for CPU, cannot use"
        way_out = (
            "Install the project with its extra `cuda` (AMD: a vLLM and torch built for ROCm) "
            "in place of `cpu`, if engines should use them."
        )
        found.append(note(Subject.GPU, sentence, way_out))
    if found:
        return found
    return [ok(Subject.GPU, _said(gpus) or "there is no GPU: engines run models on the CPU only")]


def _judge_reach(gpus: Gpus) -> list[Finding]:
    """GPUs that the bus has and no driver answers for."""
    findings = []
    if gpus.nvidia_error:
        sentence = f"nvidia-smi finds no GPU: {gpus.nvidia_error}"
        way_out = (
            "Load or install NVIDIA's driver; in a container, start it with the NVIDIA runtime."
        )
        findings.append(note(Subject.GPU, sentence, way_out))
    missing = {
        "NVIDIA": gpus.on_bus[0] if not gpus.nvidia and not gpus.nvidia_error else 0,
        "AMD": gpus.on_bus[1] if not gpus.amd else 0,
    }
    for maker, count in missing.items():
        if count:
            sentence = f"the PCI bus has {count} GPUs of {maker}, and no driver for computing"
            way_out = f"Install {maker}'s driver, or ignore it when they only drive a display."
            findings.append(note(Subject.GPU, sentence, way_out))
    return findings


def _judge_visibility(gpus: Gpus) -> list[Finding]:
    if not gpus.hidden_by or not (gpus.nvidia or gpus.amd):
        return []
    sentence = f"{_said(gpus)}, hidden from every engine because {gpus.hidden_by} names none"
    return [note(Subject.GPU, sentence, f"Unset {gpus.hidden_by}.")]


def _judge_cuda(gpus: Gpus, torch: Package, *, is_node: bool) -> list[Finding]:
    built = f"torch {torch.version} is built for CUDA {torch.device_version}".rstrip()
    if not gpus.nvidia:
        judge = note if is_node else problem
        sentence = f"{built}, and no GPU of NVIDIA answers: no engine can run here"
        return [judge(Subject.GPU, sentence, NO_GPU_WHEEL)]
    least = LEAST_DRIVERS.get(_major(torch.device_version), 0)
    if 0 < _major(gpus.nvidia_driver) < least:
        sentence = f"{built}, which needs driver {least} or newer, and {gpus.nvidia_driver} is here"
        way_out = f"Install NVIDIA's driver of branch {least} or a newer one."
        return [problem(Subject.GPU, sentence, way_out)]
    return _judge_count(gpus, gpus.nvidia)


def _judge_rocm(gpus: Gpus, torch: Package, *, is_node: bool) -> list[Finding]:
    built = f"torch {torch.version} is built for ROCm {torch.device_version}".rstrip()
    if not gpus.amd:
        judge = note if is_node else problem
        sentence = f"{built}, and no GPU of AMD answers: no engine can run here"
        return [judge(Subject.GPU, sentence, NO_GPU_WHEEL)]
    if not gpus.can_open_kfd:
        sentence = f"{_said(gpus)}, and this user may not open /dev/kfd"
        way_out = "Add the user to the groups `render` and `video`, then log in again."
        return [problem(Subject.GPU, sentence, way_out)]
    return _judge_count(gpus, gpus.amd)


def _judge_count(gpus: Gpus, there: tuple[Gpu, ...]) -> list[Finding]:
    if gpus.hidden_by or gpus.seen_by_torch is None or gpus.seen_by_torch >= len(there):
        return []
    sentence = f"{_said(gpus)}, of which torch sees {gpus.seen_by_torch}"
    way_out = (
        "See why with `python -c 'import torch; torch.cuda.init()'`; a MIG slice or "
        "*_VISIBLE_DEVICES hides GPUs too."
    )
    judge = note if gpus.seen_by_torch else problem
    return [judge(Subject.GPU, sentence, way_out)]


def _said(gpus: Gpus) -> str:
    """Empty without a GPU."""
    parts = []
    for there, driver in ((gpus.nvidia, gpus.nvidia_driver), (gpus.amd, gpus.amd_driver)):
        if there:
            cards = ", ".join(f"{count} x {name}" for name, count in _names(there).items())
            parts.append(f"{cards} (driver {driver or 'unknown'})")
    return " and ".join(parts)


def _names(gpus: tuple[Gpu, ...]) -> Counter[str]:
    return Counter(
        f"{gpu.name} {gpu.memory_mib // 1024} GiB" if gpu.memory_mib else gpu.name for gpu in gpus
    )


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0
