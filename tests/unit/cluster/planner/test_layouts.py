from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.hardware.accelerators import H100
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.planner.layouts import all_layouts
from qwenfleet.cluster.planner.rules import judge_nodes


@given(st.integers(1, 4), st.integers(1, 16), st.booleans())
def test_every_layout_fits_its_nodes_and_uses_no_extra_ones(
    nodes: int, node: int, with_pipeline: bool
) -> None:
    there = Machines(H100, nodes, node)
    for layout in all_layouts(there, with_pipeline=with_pipeline):
        assert there.engines(layout) >= 1
        assert layout.num_gpus <= there.num_gpus
        verdict = judge_nodes(layout, nodes=nodes, gpus_per_node=node)
        spans = layout.gpus_per_node % layout.tensor_parallel_size != 0
        assert verdict.is_legal is not spans
