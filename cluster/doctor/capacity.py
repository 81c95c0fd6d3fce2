"""What this machine has, against what a laptop fleet takes: CPU, memory, files and disk."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok, problem
from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.local import cpu as local_cpu
from qwenfleet.cluster.local import memory as local_memory
from qwenfleet.cluster.local.memory import GIB, EngineNeed
from qwenfleet.cluster.models import cache

MIB = 2**20
EMBEDDED_BYTES = 2 * 134_515_008
"""SmolLM2-135M-Instruct in float16: its parameters, two bytes each."""
QUEUE_BYTES = 160 * MIB
"""One vLLM executor's queue in shared memory at most: VLLM_MQ_MAX_CHUNK_BYTES_MB (16) times the 10
chunks of `MessageQueue`, vLLM 0.32."""
LEAST_SHARED_BYTES = 16 * MIB
"""A queue's first pages and a semaphore or two; a write that finds no page kills with SIGBUS."""
RAY_FILES = 65_536
"""The limit that Ray raises itself to where it may: ray 2.60 `_private/worker.py`, `init`."""
LEAST_FILES = 4_096
"""The same: below it Ray warns of connection errors."""
RAY_DISK_SHARE = 0.95
"""Ray's default `local_fs_capacity_threshold`: it spills no objects to a fuller disk."""


@dataclass(frozen=True)
class Cpu:
    architecture: str
    """`platform.machine()`."""
    cpuinfo: str
    """The first processor's part of /proc/cpuinfo."""
    cores: int
    """That this process may use."""


@dataclass(frozen=True)
class Memory:
    available_bytes: int
    """In a cgroup with a limit, what that leaves when it is less."""
    total_bytes: int


@dataclass(frozen=True)
class Room:
    """A file system."""

    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class FileLimits:
    soft: int
    hard: int
    """`resource.RLIM_INFINITY` counts as no limit."""


@dataclass(frozen=True)
class Disks:
    models: Room
    """Where embedded models are built."""
    hub: Room
    """Where Hugging Face's models are kept."""
    ray: Room
    """Where Ray keeps its session."""


def read_cpu() -> Cpu:
    first = local_cpu.read_cpuinfo().partition("\n\n")[0]
    return Cpu(platform.machine(), first, len(os.sched_getaffinity(0)))


def read_memory() -> Memory:
    return Memory(local_memory.available_memory_bytes(), int(psutil.virtual_memory().total))


def read_shared_memory() -> Room:
    return read_room(Path("/dev/shm"))


def read_file_limits() -> FileLimits:
    soft, hard = (
        2**63 if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return FileLimits(soft, hard)


def read_disks() -> Disks:
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    return Disks(
        models=read_room(cache.cache_root()),
        hub=read_room(Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))),
        ray=read_room(Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"),
    )


def read_room(path: Path) -> Room:
    """Of the nearest folder that there is. Raises OSError."""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    usage = shutil.disk_usage(there)
    return Room(str(path), usage.free, usage.total)


def judge_cpu(cpu: Cpu, extensions: tuple[str, ...], *, is_cpu_build: bool) -> list[Finding]:
    """vLLM's CPU build has one library for each set of instructions: `platforms/cpu.py`,
    `import_kernels`."""
    name = local_cpu.cpuinfo_value(cpu.cpuinfo, "model name") or cpu.architecture
    said = f"{name}, {cpu.cores} core{'' if cpu.cores == 1 else 's'}"
    if not is_cpu_build:
        return [ok(Subject.CPU, said)]
    try:
        local_cpu.check_cpu(cpu.cpuinfo, cpu.architecture)
    except MachineError as error:
        return [problem(Subject.CPU, error.problem, error.remedy)]
    flags = set(local_cpu.cpuinfo_value(cpu.cpuinfo, "flags").split())
    library, lack = cpu_library(cpu.architecture, flags)
    if library not in extensions:
        has = ", ".join(extensions) or "none"
        return [
            problem(
                Subject.CPU,
                f"{said}: vLLM's kernels for it are in {library}, and the wheel has {has}",
                "Install a vLLM that is built for this processor.",
            )
        ]
    if lack:
        return [
            note(
                Subject.CPU,
                f"{said}: vLLM uses {library}, because the processor lacks {lack}",
                "Nothing to do for small models; others want a newer processor or a GPU.",
            )
        ]
    fast = " with AMX" if {"amx_tile", "amx_bf16"} <= flags else ""
    return [ok(Subject.CPU, f"{said}: vLLM uses {library}{fast}")]


def cpu_library(architecture: str, flags: set[str]) -> tuple[str, str]:
    """Which library vLLM loads, and what the processor lacks for the best of them."""
    if architecture != "x86_64" or not flags or {"avx512f", "avx512_bf16"} <= flags:
        return "_C", ""
    if "avx512f" in flags:
        return "_C_AVX512", "AVX512-BF16"
    return "_C_AVX2", "AVX512"


def judge_memory(memory: Memory, *, is_serving: bool) -> list[Finding]:
    """`is_serving`: what a fleet needs is in use by one already."""
    config = FleetConfig()
    needs = [
        EngineNeed(m.id, m.replicas.min, local_memory.engine_bytes(EMBEDDED_BYTES, m.kv_cache_gib))
        for m in config.models
    ]
    ours = config.gateway.replicas * local_memory.GATEWAY_BYTES + local_memory.RAY_BYTES
    total = sum(need.total_bytes for need in needs) + ours
    said = f"{memory.available_bytes / GIB:.1f} of {memory.total_bytes / GIB:.1f} GiB are available"
    if total <= memory.available_bytes:
        return [ok(Subject.MEMORY, f"{said}; the laptop fleet takes {total / GIB:.1f} GiB")]
    if is_serving:
        return [ok(Subject.MEMORY, f"{said}, beside a fleet that runs")]
    most = local_memory.most_engines(needs, memory.available_bytes - ours)
    sentence = f"{said}, and the laptop fleet takes {total / GIB:.1f} GiB"
    if most:
        return [note(Subject.MEMORY, sentence, f"Use `qwenfleet serve --engines {most}`.")]
    way_out = "Stop other programs, raise the container's limit, or use a smaller kv_cache_gib."
    return [problem(Subject.MEMORY, f"{sentence}; not even one engine fits", way_out)]


def judge_shared_memory(room: Room) -> list[Finding]:
    engines = FleetConfig().num_engines
    wanted = local_memory.OBJECT_STORE_BYTES + engines * QUEUE_BYTES
    said = f"{room.free_bytes / MIB:.0f} of {room.total_bytes / MIB:.0f} MiB are free in /dev/shm"
    way_out = "In Docker use --shm-size=2g, in Kubernetes an emptyDir with medium Memory."
    if room.free_bytes < LEAST_SHARED_BYTES:
        sentence = f"{said}, and vLLM's queues to its workers are there"
        return [problem(Subject.SHARED_MEMORY, sentence, way_out)]
    if room.free_bytes < wanted:
        sentence = f"{said}, and Ray's object store and vLLM's queues take up to {wanted // MIB}"
        return [note(Subject.SHARED_MEMORY, sentence, way_out)]
    return [ok(Subject.SHARED_MEMORY, said)]


def judge_file_limits(limits: FileLimits) -> list[Finding]:
    reached = max(limits.soft, min(limits.hard, RAY_FILES))
    if reached >= RAY_FILES:
        return [ok(Subject.OPEN_FILES, f"Ray's processes may open {RAY_FILES} files")]
    sentence = (
        f"Ray's processes may open {reached} files (soft limit {limits.soft}, hard "
        f"{limits.hard}), and Ray wants {RAY_FILES}"
    )
    way_out = (
        f"Raise the hard limit: `ulimit -Hn {RAY_FILES}` as root, limits.conf, or LimitNOFILE= "
        "of the service; in Docker --ulimit nofile."
    )
    if reached < LEAST_FILES:
        return [problem(Subject.OPEN_FILES, f"{sentence}: connections will fail", way_out)]
    return [note(Subject.OPEN_FILES, sentence, way_out)]


def judge_disks(disks: Disks) -> list[Finding]:
    findings = []
    models, hub, ray = disks.models, disks.hub, disks.ray
    if models.free_bytes < 2 * EMBEDDED_BYTES:
        sentence = (
            f"{models.free_bytes / GIB:.1f} GiB are free for {models.path}, "
            "where embedded models are built"
        )
        way_out = "Free some, or set XDG_CACHE_HOME to a folder with 1 GiB."
        findings.append(problem(Subject.DISK, sentence, way_out))
    if hub.free_bytes < GIB:
        sentence = (
            f"{hub.free_bytes / GIB:.1f} GiB are free for {hub.path}, "
            "where models of the Hugging Face Hub are kept"
        )
        findings.append(note(Subject.DISK, sentence, "Free some, or set HF_HOME to another disk."))
    share = 1 - ray.free_bytes / max(ray.total_bytes, 1)
    if share > RAY_DISK_SHARE:
        sentence = (
            f"the disk of {ray.path} is {share:.0%} full, and Ray spills no objects to it above "
            f"{RAY_DISK_SHARE:.0%}"
        )
        way_out = f"Remove old sessions from {ray.path}, or set RAY_TMPDIR to another disk."
        findings.append(note(Subject.DISK, sentence, way_out))
    said = f"{hub.free_bytes / GIB:.0f} GiB are free for models at {hub.path}"
    return findings or [ok(Subject.DISK, said)]
