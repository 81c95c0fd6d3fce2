"""All layouts that some machines could run, before any rule is applied. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.machines import Machines

MAX_NODES_PER_ENGINE: Final = 4
"""Nobody has published engines over more nodes for these models."""


def all_layouts(machines: Machines, *, with_pipeline: bool = False) -> Iterator[Layout]:
    """Yield every split of each useful number of GPUs, on as few nodes as hold it.

    Useful numbers divide a node evenly, are powers of two, or fill whole nodes. Expert parallelism
    needs no GPUs of its own, so each split comes with and without it.
    """
    node = machines.gpus_per_node
    for gpus in range(1, node + 1):
        if node % gpus == 0 or gpus.bit_count() == 1:
            yield from _splits(gpus, 1, with_pipeline=with_pipeline)
    for nodes in range(2, min(machines.nodes, MAX_NODES_PER_ENGINE) + 1):
        yield from _splits(nodes * node, nodes, with_pipeline=with_pipeline)


def _splits(gpus: int, nodes: int, *, with_pipeline: bool) -> Iterator[Layout]:
    for tp in _divisors(gpus):
        for pp in _divisors(gpus // tp) if with_pipeline else [1]:
            dp = gpus // tp // pp
            for is_expert_parallel in (False, True) if tp * dp > 1 else (False,):
                yield Layout(
                    tensor_parallel_size=tp,
                    pipeline_parallel_size=pp,
                    data_parallel_size=dp,
                    expert_parallel=is_expert_parallel,
                    nodes=nodes,
                )


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
