from __future__ import annotations

import pytest

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import H100
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.plan_errors import PlanError


@pytest.mark.parametrize(("nodes", "node"), [(0, 8), (1, 0), (-1, 8), (1, -8)])
def test_machines_without_gpus_are_refused(nodes: int, node: int) -> None:
    with pytest.raises(PlanError, match=r"the number of .* is (0|-1|-8)"):
        Machines(H100, nodes, node)


@pytest.mark.parametrize(
    ("layout", "nodes", "node", "engines"),
    [
        ("TP4", 1, 8, 2),
        ("TP4", 3, 8, 6),
        ("TP4", 1, 6, 1),
        ("TP8xDP2@2", 3, 8, 1),
        ("TP8", 9, 4, 0),
    ],
)
def test_engines_share_nodes_only_when_they_fit(
    layout: str, nodes: int, node: int, engines: int
) -> None:
    assert Machines(H100, nodes, node).engines(Layout.parse(layout)) == engines
