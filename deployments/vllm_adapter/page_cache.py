"""Page cache counts as free memory: vLLM's check of a container's limit counts it as used.

vLLM 0.32 refuses to start a CPU engine if its KV cache is larger than the limit of the container
less all its usage (`cpu_resource_utils.get_memory_node_info`). Usage includes the files that were
read, weights and libraries among them, and those of an earlier engine too, so each start in the
same container finds less. For the machine, in the same function, vLLM adds the page cache to what
is free; here the cgroup gets the same rule.

Patched: `cpu_resource_utils.get_cgroup_memory_usage`, in each process of an engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vllm.utils import cpu_resource_utils

from qwenfleet.cluster.local import memory

MARK: Final = "qwenfleet_page_cache"


def register() -> None:
    """Patch vLLM in this process; more than one call patches once."""
    original: Callable[[], int | None] = cpu_resource_utils.get_cgroup_memory_usage
    if not hasattr(original, MARK):

        def get_cgroup_memory_usage() -> int | None:
            usage = original()
            return (
                None if usage is None else max(0, usage - memory.page_cache_bytes(memory.CGROUPS))
            )

        setattr(get_cgroup_memory_usage, MARK, True)
        cpu_resource_utils.get_cgroup_memory_usage = get_cgroup_memory_usage
