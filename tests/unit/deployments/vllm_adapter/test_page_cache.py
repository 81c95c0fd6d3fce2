"""Page cache in a container's cgroup counts as free memory for vLLM's check."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm.utils import cpu_resource_utils

from qwenfleet.cluster.local import memory
from qwenfleet.deployments.vllm_adapter import page_cache, resume_plugin

LIMIT, USED, CACHED = 4000, 3900, 3000


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cgroup that is full of page cache, where vLLM and our patch look for it."""
    (tmp_path / "memory.stat").write_text(
        f"anon 900\ninactive_file 1000\nactive_file {CACHED - 1000}\n"
    )
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(cpu_resource_utils, "get_cgroup_memory_limit", lambda: LIMIT)
    monkeypatch.setattr(cpu_resource_utils, "get_cgroup_memory_usage", lambda: USED)


def test_vllm_counts_page_cache_as_used_by_itself(container: None) -> None:
    """When this fails, vLLM has the rule itself, and the patch can be removed."""
    assert cpu_resource_utils.get_memory_node_info(0).available_memory == LIMIT - USED


def test_the_plugin_makes_it_free(container: None) -> None:
    resume_plugin.register()
    resume_plugin.register()
    found = cpu_resource_utils.get_memory_node_info(0)
    assert (found.total_memory, found.available_memory) == (LIMIT, LIMIT - USED + CACHED)


def test_without_a_limit_nothing_changes(container: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_resource_utils, "get_cgroup_memory_usage", lambda: None)
    page_cache.register()
    assert cpu_resource_utils.get_cgroup_memory_usage() is None
