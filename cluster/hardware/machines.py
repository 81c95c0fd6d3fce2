"""Machines: the nodes of one kind for a plan. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import Accelerator
from qwenfleet.cluster.plan_errors import Quantity, WrongQuantity


@dataclass(frozen=True)
class Machines:
    """Nodes of one kind, so that an engine cannot mix vendors."""

    accelerator: Accelerator
    nodes: int = 1
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        for quantity, count in [
            (Quantity.NODES, self.nodes),
            (Quantity.GPUS_PER_NODE, self.gpus_per_node),
        ]:
            if count < 1:
                raise WrongQuantity(quantity, count, "a number of 1 or more")

    @property
    def num_gpus(self) -> int:
        """The number of GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def name(self) -> str:
        """The machines in short form, such as `2 x 8 x MI300X`."""
        nodes = f"{self.nodes} x " if self.nodes > 1 else ""
        return f"{nodes}{self.gpus_per_node} x {self.accelerator.name}"

    def engines(self, layout: Layout) -> int:
        """Return how many engines of this layout fit at once."""
        if layout.gpus_per_node > self.gpus_per_node:
            return 0
        if layout.nodes > 1:
            return self.nodes // layout.nodes
        return self.nodes * (self.gpus_per_node // layout.num_gpus)
