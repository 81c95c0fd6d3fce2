import pytest

from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.local.cpu import check_cpu, read_cpuinfo


def cpuinfo(flags: str) -> str:
    return f"processor\t: 0\nmodel name\t: Old Chip 9\nflags\t\t: {flags}\n\nprocessor\t: 1\n"


@pytest.mark.parametrize("flags", ["sse2 avx2", "sse2 avx512f"])
def test_an_x86_cpu_with_wide_vectors_passes(flags: str) -> None:
    check_cpu(cpuinfo(flags), "x86_64")


def test_the_error_for_an_old_x86_cpu_names_it_and_the_missing_flags() -> None:
    with pytest.raises(MachineError, match="'Old Chip 9' has neither avx512f nor avx2"):
        check_cpu(cpuinfo("sse2 avx"), "x86_64")


def test_an_arm_cpu_passes_whatever_its_flags() -> None:
    check_cpu(cpuinfo("fp asimd"), "aarch64")


def test_a_cpu_without_flags_passes() -> None:
    check_cpu("", "x86_64")


def test_this_machines_cpuinfo_is_text() -> None:
    assert isinstance(read_cpuinfo(), str)
