"""Judgments on CPU, memory, shared memory, open files and disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenfleet.cluster.doctor import capacity
from qwenfleet.cluster.doctor.capacity import MIB, Cpu, Disks, FileLimits, Memory, Room
from qwenfleet.cluster.doctor.finding import Finding, Level
from qwenfleet.cluster.units import GIB

WHEEL = ("_C", "_C_AVX2", "_C_AVX512")
GENOA = "sse2 avx avx2 avx512f avx512bw avx512_bf16"
SAPPHIRE_RAPIDS = f"{GENOA} amx_bf16 amx_tile amx_int8"
SKYLAKE = "sse2 avx avx2 avx512f avx512bw"
LAPTOP = "sse2 avx avx2 fma"
OLD = "sse2 avx"


def cpu(flags: str, architecture: str = "x86_64") -> Cpu:
    text = f"processor\t: 0\nmodel name\t: Chip 9\nflags\t\t: {flags}"
    return Cpu(architecture, text, cores=8)


def only(findings: list[Finding], level: Level) -> str:
    (finding,) = findings
    assert finding.level is level, finding
    return f"{finding.sentence}. {finding.remedy}"


def judge_cpu(found: Cpu, extensions: tuple[str, ...] = WHEEL) -> list[Finding]:
    return capacity.judge_cpu(found, extensions, is_cpu_build=True)


@pytest.mark.parametrize(
    ("flags", "level", "reported"),
    [
        (GENOA, Level.OK, "Chip 9, 8 cores: vLLM uses _C."),
        (SAPPHIRE_RAPIDS, Level.OK, "_C with AMX"),
        (SKYLAKE, Level.NOTE, "_C_AVX512, because the processor lacks AVX512-BF16"),
        (LAPTOP, Level.NOTE, "_C_AVX2, because the processor lacks AVX512"),
        (OLD, Level.PROBLEM, "neither avx512f nor avx2"),
    ],
)
def test_cpu_flags_decide_which_kernels_vllm_uses(flags: str, level: Level, reported: str) -> None:
    assert reported in only(judge_cpu(cpu(flags)), level)


def test_a_wheel_without_the_cpus_kernels_is_a_problem() -> None:
    assert "_C_AVX2, and the wheel has _C." in only(judge_cpu(cpu(LAPTOP), ("_C",)), Level.PROBLEM)


def test_an_arm_cpu_has_one_library() -> None:
    assert "vLLM uses _C" in only(judge_cpu(cpu("fp asimd", "aarch64"), ("_C",)), Level.OK)


def test_cpu_flags_do_not_matter_if_vllm_is_built_for_gpus() -> None:
    assert only(capacity.judge_cpu(cpu(OLD), (), is_cpu_build=False), Level.OK)


@pytest.mark.parametrize(
    ("free_gib", "level", "reported"),
    [
        (16, Level.OK, "16.0 of 32.0 GiB"),
        (5, Level.NOTE, "--engines 1"),
        (2, Level.PROBLEM, "not even one engine fits"),
    ],
)
def test_memory_is_compared_with_the_needs_of_the_laptop_fleet(
    free_gib: int, level: Level, reported: str
) -> None:
    memory = Memory(free_gib * GIB, 32 * GIB)
    assert reported in only(capacity.judge_memory(memory, is_serving=False), level)


def test_memory_that_a_running_fleet_uses_is_not_reported_as_missing() -> None:
    memory = Memory(2 * GIB, 32 * GIB)
    assert "while a fleet is running" in only(
        capacity.judge_memory(memory, is_serving=True), Level.OK
    )


@pytest.mark.parametrize(
    ("free_mib", "level"), [(2048, Level.OK), (64, Level.NOTE), (8, Level.PROBLEM)]
)
def test_shared_memory_must_hold_rays_store_and_vllms_queues(free_mib: int, level: Level) -> None:
    reported = only(capacity.judge_shared_memory(Room("/dev/shm", free_mib * MIB, 64 * GIB)), level)
    assert f"{free_mib} of 65536 MiB" in reported


@pytest.mark.parametrize(
    ("soft", "hard", "level"),
    [
        (1024, 1_048_576, Level.OK),
        (1024, 2**63, Level.OK),
        (1024, 20_000, Level.NOTE),
        (1024, 2_048, Level.PROBLEM),
    ],
)
def test_the_hard_limit_counts_because_ray_raises_the_soft_one(
    soft: int, hard: int, level: Level
) -> None:
    assert "65536" in only(capacity.judge_file_limits(FileLimits(soft, hard)), level)


ROOMY = Room("/disk", 80 * GIB, 100 * GIB)


@pytest.mark.parametrize(
    ("disks", "level", "reported"),
    [
        (Disks(ROOMY, ROOMY, ROOMY), Level.OK, "80 GiB are free"),
        (Disks(Room("/c", MIB, GIB), ROOMY, ROOMY), Level.PROBLEM, "XDG_CACHE_HOME"),
        (Disks(ROOMY, Room("/hf", MIB, GIB), ROOMY), Level.NOTE, "HF_HOME"),
        (Disks(ROOMY, ROOMY, Room("/tmp/ray", 4 * GIB, 100 * GIB)), Level.NOTE, "96% full"),
    ],
)
def test_each_disk_is_judged_by_what_is_stored_there(
    disks: Disks, level: Level, reported: str
) -> None:
    assert reported in only(capacity.judge_disks(disks), level)


def test_a_missing_directory_has_the_free_space_of_its_parent(tmp_path: Path) -> None:
    room = capacity.read_room(tmp_path / "not" / "there")
    assert room.path.endswith("not/there")
    assert 0 < room.free_bytes <= room.total_bytes


def test_this_machine_can_be_read() -> None:
    assert capacity.read_cpu().cores >= 1
    assert capacity.read_memory().available_bytes > 0
    assert capacity.read_shared_memory().total_bytes > 0
    assert capacity.read_file_limits().hard >= capacity.read_file_limits().soft
    assert capacity.read_disks().models.path.endswith("qwenfleet/models")
