from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.local.memory import (
    PROCESS_BYTES,
    EngineNeed,
    available_memory_bytes,
    cgroup_headroom_bytes,
    check_memory,
    engine_bytes,
    most_engines,
)
from qwenfleet.cluster.units import GIB


def write_group(group: Path, names: tuple[str, str], values: tuple[str, int], stat: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, values, strict=True):
        (group / name).write_text(f"{value}\n")
    (group / "memory.stat").write_text(stat)


def write_v2(group: Path, limit: str, usage: int, cache: int) -> None:
    stat = f"anon 1\ninactive_file {cache}\n"
    write_group(group, ("memory.max", "memory.current"), (limit, usage), stat)


def test_headroom_is_the_limit_minus_memory_that_cannot_be_reclaimed(tmp_path: Path) -> None:
    write_v2(tmp_path / "pod", "1000", usage=700, cache=300)
    assert cgroup_headroom_bytes("0::/pod\n", tmp_path) == 600


def test_the_cgroup_with_the_least_headroom_counts(tmp_path: Path) -> None:
    write_v2(tmp_path / "pod", "500", usage=400, cache=0)
    write_v2(tmp_path / "pod" / "box", "max", usage=10, cache=0)
    assert cgroup_headroom_bytes("0::/pod/box\n", tmp_path) == 100


def test_a_cgroup_over_its_limit_has_no_headroom(tmp_path: Path) -> None:
    write_v2(tmp_path / "pod", "500", usage=600, cache=0)
    assert cgroup_headroom_bytes("0::/pod\n", tmp_path) == 0


def test_cgroup_v1_is_read_from_its_memory_controller(tmp_path: Path) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write_group(tmp_path / "memory/pod", names, ("900", 500), "total_inactive_file 50\n")
    own = "4:memory:/pod\n3:cpuset:/\n1:name=systemd:/\n0::/\n"
    assert cgroup_headroom_bytes(own, tmp_path) == 450


def test_a_cgroup_hidden_by_the_container_falls_back_to_the_mounted_root(tmp_path: Path) -> None:
    write_v2(tmp_path, "1000", usage=100, cache=0)
    assert cgroup_headroom_bytes("0::/docker/abc\n", tmp_path) == 900


def test_without_a_limit_there_is_no_headroom_to_report(tmp_path: Path) -> None:
    assert cgroup_headroom_bytes("0::/\n", tmp_path) is None
    assert cgroup_headroom_bytes("", tmp_path) is None


def test_available_memory_never_exceeds_the_machines() -> None:
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total


def test_an_engine_needs_memory_for_weights_cache_and_processes() -> None:
    assert engine_bytes(10 * GIB, 2.0) == 14.5 * GIB + PROCESS_BYTES


def test_ranks_of_an_engine_share_its_weights_and_have_a_process_and_a_cache_each() -> None:
    alone = engine_bytes(10 * GIB, 2.0)
    assert engine_bytes(10 * GIB, 2.0, ranks=2) == alone + 2 * GIB + 2 * PROCESS_BYTES


def test_engines_that_fit_exactly_pass() -> None:
    check_memory([EngineNeed("a", 2, 3 * GIB)], 6 * GIB)


def test_the_error_for_too_little_memory_names_each_model_the_total_and_what_fits() -> None:
    needs = [EngineNeed("coder", 3, 2 * GIB), EngineNeed("small", 2, GIB)]
    with pytest.raises(MachineError) as caught:
        check_memory(needs, 7 * GIB)
    assert str(caught.value) == (
        "the engines need 8.0 GiB of memory "
        "(3 x 2.0 GiB for model 'coder', 2 x 1.0 GiB for model 'small'), "
        "but 7.0 GiB is available. At most 2 per model fits: use --engines 2."
    )


def test_the_remedy_is_a_smaller_model_if_no_engine_fits() -> None:
    with pytest.raises(MachineError, match="Not even one engine per model fits"):
        check_memory([EngineNeed("coder", 1, 2 * GIB)], GIB)


@given(
    st.lists(st.integers(1, 50 * GIB), min_size=1, max_size=4),
    st.integers(-GIB, 200 * GIB),
)
def test_the_advised_number_of_engines_fits_and_one_more_does_not(
    sizes: list[int], available: int
) -> None:
    most = most_engines([EngineNeed("m", 9, size) for size in sizes], available)
    assert most * sum(sizes) <= max(available, 0) < (most + 1) * sum(sizes)
