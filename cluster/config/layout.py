"""The layout of one engine: how it is sharded, and over how many GPUs. Pure."""

from __future__ import annotations

import re
from typing import Final, Self

from pydantic import Field, model_validator

from qwenfleet.cluster.config.section import Section, refuse

SHORT_FORM: Final = re.compile(
    r"(?:TP(?P<tp>\d+))?(?:x?PP(?P<pp>\d+))?(?:x?DP(?P<dp>\d+))?(?P<ep>\+EP(?P<ep_size>\d+)?)?"
    r"(?:@(?P<nodes>\d+))?",
    re.IGNORECASE,
)
"""Short forms: `TP8`, `TP4xDP2+EP8`, `DP8+EP`, `TP8xDP2+EP16@2` for two nodes."""


class Layout(Section):
    """How one engine is sharded; the default is one GPU.

    vLLM's expert parallelism replaces tensor parallelism in the expert layers, over all tensor and
    data parallel ranks: it needs no additional GPUs.
    """

    tensor_parallel_size: int = Field(
        default=1, ge=1, description="GPUs that split the heads and matrices of each layer."
    )
    pipeline_parallel_size: int = Field(
        default=1, ge=1, description="Pipeline stages: groups of GPUs that split the layers."
    )
    data_parallel_size: int = Field(
        default=1, ge=1, description="Ranks with separate attention and KV cache."
    )
    expert_parallel: bool = Field(
        default=False,
        description="Whether whole experts are distributed over all tensor and data parallel "
        "ranks.",
    )
    expert_load_balancing: bool = Field(
        default=False,
        description="Whether vLLM measures the load of each expert and moves experts between "
        "ranks.",
    )
    nodes: int = Field(default=1, ge=1, description="Nodes that share the GPUs evenly.")

    @property
    def num_gpus(self) -> int:
        """The number of GPUs of one engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def gpus_per_node(self) -> int:
        """The number of GPUs of one engine on each of its nodes."""
        return self.num_gpus // self.nodes

    @property
    def expert_parallel_size(self) -> int:
        """Ranks that share the experts: TP x DP, by vLLM's rule; 1 without expert parallelism."""
        if not self.expert_parallel:
            return 1
        return self.tensor_parallel_size * self.data_parallel_size

    @property
    def name(self) -> str:
        """The short form, which `parse` reads."""
        sizes = [
            ("TP", self.tensor_parallel_size),
            ("PP", self.pipeline_parallel_size),
            ("DP", self.data_parallel_size),
        ]
        parts = [f"{axis}{size}" for axis, size in sizes if size > 1] or ["TP1"]
        experts = f"+EP{self.expert_parallel_size}" if self.expert_parallel else ""
        return "x".join(parts) + experts + (f"@{self.nodes}" if self.nodes > 1 else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a short form such as `TP4xDP2+EP8@2`. Raises ValueError with a sentence."""
        found = SHORT_FORM.fullmatch(text.strip())
        if found is None or not text.strip():
            raise ValueError(
                f"'{text}' is not a layout. Write one such as TP8, TP4xDP2+EP8 or DP8+EP"
            )
        sizes = {key: int(found[key] or 1) for key in ("tp", "pp", "dp", "nodes")}
        layout = cls(
            tensor_parallel_size=sizes["tp"],
            pipeline_parallel_size=sizes["pp"],
            data_parallel_size=sizes["dp"],
            expert_parallel=found["ep"] is not None,
            nodes=sizes["nodes"],
        )
        asked = found["ep_size"]
        if asked is not None and int(asked) != layout.expert_parallel_size:
            raise ValueError(
                f"'{text}' asks for {asked} expert parallel ranks; vLLM uses TP x DP = "
                f"{layout.expert_parallel_size}. Write {layout.name}"
            )
        return layout

    @model_validator(mode="after")
    def _nodes_share_evenly(self) -> Self:
        if self.num_gpus % self.nodes:
            raise refuse(
                f"layout.nodes {self.nodes} cannot share {self.num_gpus} GPUs "
                f"({self.tensor_parallel_size} x {self.pipeline_parallel_size} x "
                f"{self.data_parallel_size}) evenly",
                f"Choose a number of nodes that divides {self.num_gpus}.",
                ("nodes",),
            )
        return self

    @model_validator(mode="after")
    def _load_balancing_needs_expert_parallel(self) -> Self:
        if self.expert_load_balancing and not self.expert_parallel:
            raise refuse(
                "layout.expert_load_balancing is set without layout.expert_parallel",
                "Set expert_parallel to true, or remove expert_load_balancing.",
                ("expert_load_balancing",),
            )
        return self
