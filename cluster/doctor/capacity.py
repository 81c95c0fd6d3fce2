"""CPU, memory, open files and disk of this machine, compared with what a laptop fleet needs."""

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
from qwenfleet.cluster.local.memory import EngineNeed
from qwenfleet.cluster.models import cache, smollm2
from qwenfleet.cluster.units import GIB

MIB = 2**20
QUEUE_BYTES = 160 * MIB
"""Maximum shared memory of one vLLM executor's queue: VLLM_MQ_MAX_CHUNK_BYTES_MB (16) times the 10
chunks of `MessageQueue`, vLLM 0.32."""
LEAST_SHARED_BYTES = 16 * MIB
"""A queue's first pages and a semaphore or two. A write that gets no page is killed by SIGBUS."""
RAY_FILES = 65_536
"""Soft limit that Ray sets for itself if the hard limit allows: ray 2.60 `_private/worker.py`,
`init`."""
LEAST_FILES = 4_096
"""Limit below which Ray warns of connection errors: the same function."""
RAY_DISK_SHARE = 0.95
"""Ray's default `local_fs_capacity_threshold`: it spills no objects to a disk that is fuller."""


@dataclass(frozen=True)
class Cpu:
    architecture: str
    """`platform.machine()`."""
    cpuinfo: str
    """The first processor's section of /proc/cpuinfo."""
    cores: int
    """Cores that this process may use."""


@dataclass(frozen=True)
class Memory:
    available_bytes: int
    """Also bounded by the cgroup's limit, if there is one."""
    total_bytes: int


@dataclass(frozen=True)
class Room:
    """Free space of a file system."""

    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class FileLimits:
    soft: int
    hard: int
    """2**63 if unlimited (`resource.RLIM_INFINITY`)."""


@dataclass(frozen=True)
class Disks:
    models: Room
    """Directory in which embedded models are built."""
    hub: Room
    """Directory in which Hugging Face stores models."""
    ray: Room
    """Directory of Ray's sessions."""


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
    """Free space at `path`, or at its nearest parent that exists. Raises OSError."""
    existing = path.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    usage = shutil.disk_usage(existing)
    return Room(str(path), usage.free, usage.total)


def judge_cpu(cpu: Cpu, extensions: tuple[str, ...], *, is_cpu_build: bool) -> list[Finding]:
    """Findings about the CPU. vLLM's CPU build has one library for each instruction set:
    `platforms/cpu.py`, `import_kernels`."""
    name = local_cpu.cpuinfo_value(cpu.cpuinfo, "model name") or cpu.architecture
    summary = f"{name}, {cpu.cores} core{'' if cpu.cores == 1 else 's'}"
    if not is_cpu_build:
        return [ok(Subject.CPU, summary)]
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
                f"{summary}: vLLM's kernels for it are in {library}, and the wheel has {has}",
                "Install a vLLM wheel that is built for this processor.",
            )
        ]
    if lack:
        return [
            note(
                Subject.CPU,
                f"{summary}: vLLM uses {library}, because the processor lacks {lack}",
                "Nothing to do for small models. For larger ones use a newer processor or a GPU.",
            )
        ]
    fast = " with AMX" if {"amx_tile", "amx_bf16"} <= flags else ""
    return [ok(Subject.CPU, f"{summary}: vLLM uses {library}{fast}")]


def cpu_library(architecture: str, flags: set[str]) -> tuple[str, str]:
    """The library that vLLM loads, and what the processor lacks for the fastest one."""
    if architecture != "x86_64" or not flags or {"avx512f", "avx512_bf16"} <= flags:
        return "_C", ""
    if "avx512f" in flags:
        return "_C_AVX512", "AVX512-BF16"
    return "_C_AVX2", "AVX512"


def judge_memory(memory: Memory, *, is_serving: bool) -> list[Finding]:
    """Findings about memory; `is_serving` if a running fleet already uses its share."""
    config = FleetConfig()
    least = local_memory.engine_bytes(smollm2.WEIGHT_BYTES, local_memory.LEAST_KV_GIB)
    needs = [EngineNeed(model.id, model.replicas.min, least) for model in config.models]
    ours = config.gateway.replicas * local_memory.GATEWAY_BYTES + local_memory.RAY_BYTES
    total = sum(need.total_bytes for need in needs) + ours
    summary = (
        f"{memory.available_bytes / GIB:.1f} of {memory.total_bytes / GIB:.1f} GiB are available"
    )
    if total <= memory.available_bytes:
        return [ok(Subject.MEMORY, f"{summary}; the laptop fleet needs {total / GIB:.1f} GiB")]
    if is_serving:
        return [ok(Subject.MEMORY, f"{summary} while a fleet is running")]
    most = local_memory.most_engines(needs, memory.available_bytes - ours)
    sentence = f"{summary}, and the laptop fleet needs {total / GIB:.1f} GiB"
    if most:  # fewer engines than configured fit
        return [note(Subject.MEMORY, sentence, f"Use `qwenfleet serve --engines {most}`.")]
    remedy = "Stop other programs or raise the container's memory limit."
    return [problem(Subject.MEMORY, f"{sentence}; not even one engine fits", remedy)]


def judge_shared_memory(room: Room) -> list[Finding]:
    engines = FleetConfig().num_engines
    wanted = local_memory.OBJECT_STORE_BYTES + engines * QUEUE_BYTES
    summary = (
        f"{room.free_bytes / MIB:.0f} of {room.total_bytes / MIB:.0f} MiB are free in /dev/shm"
    )
    remedy = "In Docker use --shm-size=2g, in Kubernetes an emptyDir with medium Memory."
    if room.free_bytes < LEAST_SHARED_BYTES:
        sentence = f"{summary}, too few for vLLM's queues to its workers"
        return [problem(Subject.SHARED_MEMORY, sentence, remedy)]
    if room.free_bytes < wanted:
        sentence = (
            f"{summary}, and Ray's object store and vLLM's queues use up to {wanted // MIB} MiB"
        )
        return [note(Subject.SHARED_MEMORY, sentence, remedy)]
    return [ok(Subject.SHARED_MEMORY, summary)]


def judge_file_limits(limits: FileLimits) -> list[Finding]:
    reached = max(limits.soft, min(limits.hard, RAY_FILES))
    if reached >= RAY_FILES:
        return [ok(Subject.OPEN_FILES, f"Ray's processes may open {RAY_FILES} files")]
    sentence = (
        f"Ray's processes may open {reached} files (soft limit {limits.soft}, hard limit "
        f"{limits.hard}), and Ray recommends {RAY_FILES}"
    )
    remedy = (
        f"Raise the hard limit: `ulimit -Hn {RAY_FILES}` as root, limits.conf, LimitNOFILE= "
        "of the service, or Docker's --ulimit nofile."
    )
    if reached < LEAST_FILES:
        return [problem(Subject.OPEN_FILES, f"{sentence}: connections will fail", remedy)]
    return [note(Subject.OPEN_FILES, sentence, remedy)]


def judge_disks(disks: Disks) -> list[Finding]:
    findings = []
    models, hub, ray = disks.models, disks.hub, disks.ray
    if models.free_bytes < 2 * smollm2.WEIGHT_BYTES:
        sentence = (
            f"{models.free_bytes / GIB:.1f} GiB are free at {models.path}, "
            "where embedded models are built"
        )
        remedy = "Free some space, or set XDG_CACHE_HOME to a directory with 1 GiB free."
        findings.append(problem(Subject.DISK, sentence, remedy))
    if hub.free_bytes < GIB:
        sentence = (
            f"{hub.free_bytes / GIB:.1f} GiB are free at {hub.path}, "
            "where models from the Hugging Face Hub are stored"
        )
        remedy = "Free some space, or set HF_HOME to another disk."
        findings.append(note(Subject.DISK, sentence, remedy))
    share = 1 - ray.free_bytes / max(ray.total_bytes, 1)
    if share > RAY_DISK_SHARE:
        sentence = (
            f"the disk of {ray.path} is {share:.0%} full, and Ray spills no objects to a disk "
            f"that is more than {RAY_DISK_SHARE:.0%} full"
        )
        remedy = f"Remove old sessions from {ray.path}, or set RAY_TMPDIR to another disk."
        findings.append(note(Subject.DISK, sentence, remedy))
    summary = f"{hub.free_bytes / GIB:.0f} GiB are free for models at {hub.path}"
    return findings or [ok(Subject.DISK, summary)]
