from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.local.memory import (
    LEAST_KV_GIB,
    PROCESS_BYTES,
    RAY_BYTES,
    USUAL_KV_GIB,
    EngineNeed,
    available_memory_bytes,
    cgroup_headroom_bytes,
    cgroup_limit_bytes,
    check_memory,
    engine_bytes,
    kv_cache_bytes,
    most_engines,
    page_cache_bytes,
    shared_kv_gib,
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


def test_page_cache_that_was_read_twice_counts_as_free_too(tmp_path: Path) -> None:
    """Otherwise an engine that starts again finds its own libraries and weights in the way."""
    stat = "anon 100\ninactive_file 200\nactive_file 400\n"
    write_group(tmp_path, ("memory.max", "memory.current"), ("1000", 700), stat)
    assert cgroup_headroom_bytes("0::/\n", tmp_path) == 900
    assert page_cache_bytes(tmp_path) == 600


def test_page_cache_of_cgroup_v1_is_that_of_the_whole_container(tmp_path: Path) -> None:
    stat = "inactive_file 1\nactive_file 2\ntotal_inactive_file 10\ntotal_active_file 20\n"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write_group(tmp_path / "memory", names, ("900", 500), stat)
    assert page_cache_bytes(tmp_path) == 30


def test_without_cgroups_there_is_no_page_cache_to_count(tmp_path: Path) -> None:
    assert page_cache_bytes(tmp_path) == 0


def test_the_smallest_limit_of_all_parents_is_the_container_s(tmp_path: Path) -> None:
    write_v2(tmp_path / "pod", "500", usage=600, cache=0)
    write_v2(tmp_path / "pod" / "box", "max", usage=10, cache=0)
    assert cgroup_limit_bytes("0::/pod/box\n", tmp_path) == 500


def test_the_largest_number_of_cgroup_v1_means_no_limit(tmp_path: Path) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write_group(tmp_path / "memory", names, ("9223372036854771712", 5), "")
    assert cgroup_limit_bytes("4:memory:/\n", tmp_path) is None
    assert cgroup_headroom_bytes("4:memory:/\n", tmp_path) is None


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


def test_without_a_limit_an_engine_has_the_usual_or_the_configured_cache() -> None:
    assert kv_cache_bytes(None, GIB, 1, None) == USUAL_KV_GIB * GIB
    assert kv_cache_bytes(3.0, GIB, 1, None) == 3 * GIB


@given(
    st.integers(0, 20 * GIB),
    st.integers(1, 4),
    st.integers(GIB, 60 * GIB),
    st.none() | st.floats(0.1, 8),
)
def test_an_engine_either_fits_its_container_or_is_refused(
    weights: int, ranks: int, limit: int, asked: float | None
) -> None:
    least = engine_bytes(weights, LEAST_KV_GIB if asked is None else asked, ranks) + RAY_BYTES
    try:
        chosen = kv_cache_bytes(asked, weights, ranks, limit)
    except MachineError:
        assert least > limit
        return
    assert least <= limit
    assert engine_bytes(weights, chosen / GIB, ranks) + RAY_BYTES <= limit
    if asked is not None:
        assert chosen == int(asked * GIB)


def test_a_larger_limit_makes_a_larger_cache_up_to_the_usual_one() -> None:
    fixed = engine_bytes(GIB, 0) + RAY_BYTES
    room = [0.25, 0.5, 0.75, 1.0, 2.0]
    chosen = [kv_cache_bytes(None, GIB, 1, fixed + int(more * GIB)) / GIB for more in room]
    assert chosen == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_error_for_a_small_container_says_which_limit_is_enough() -> None:
    with pytest.raises(MachineError) as caught:
        kv_cache_bytes(None, 0, 1, 2 * GIB)
    text = str(caught.value)
    assert f"{LEAST_KV_GIB} GiB of that" in text
    assert "its container is 2.0 GiB" in text
    enough = float(text.rpartition("limit to ")[2].removesuffix(" GiB."))
    assert kv_cache_bytes(None, 0, 1, int(enough * GIB)) >= LEAST_KV_GIB * GIB
    with pytest.raises(MachineError, match=r"or lower kv_cache_gib\.$"):
        kv_cache_bytes(4.0, 0, 1, 4 * GIB)


def test_engines_without_a_configured_cache_share_what_is_left() -> None:
    needs = [EngineNeed("a", 2, 2 * GIB, open_ranks=1), EngineNeed("b", 1, GIB)]
    assert shared_kv_gib(needs, 5 * GIB) == LEAST_KV_GIB
    assert shared_kv_gib(needs, 6 * GIB) == LEAST_KV_GIB + 0.5
    assert shared_kv_gib(needs, 99 * GIB) == USUAL_KV_GIB


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
