"""Planner errors in terms of configuration keys instead of command-line options. Pure."""

from __future__ import annotations

import json
from typing import Final

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import find_accelerator
from qwenfleet.cluster.plan_errors import Alternative, Quantity, Wording

_NAMES: Final = {
    Quantity.MODEL: "source",
    Quantity.ACCELERATOR: "accelerator",
    Quantity.NODES: "layout.nodes",
    Quantity.GPUS_PER_NODE: "the layout's GPUs on each node",
    Quantity.LAYOUT: "layout",
    Quantity.CONTEXT: "max_model_len",
    Quantity.LONG_CONTEXT: "engine_args.hf_overrides",
    Quantity.KV_DTYPE: "engine_args.kv_cache_dtype",
    Quantity.MEMORY_SHARE: "engine_args.gpu_memory_utilization",
}
"""A configuration has no load, so its quantities are missing; the planner assumes a load."""


def _change(change: Alternative) -> str:
    layout = f"layout: {flow(change.layout)}"
    match change.quantity:
        case Quantity.LAYOUT:
            return layout
        case Quantity.NODES | Quantity.GPUS_PER_NODE:
            return f"{layout} on {change.machines}"
        case Quantity.ACCELERATOR:
            name = find_accelerator(str(change.value)).ray_name
            return f"accelerator: {name} with {layout}"
    return f"{_NAMES[change.quantity]}: {change.value} with {layout}"


def flow(layout: str) -> str:
    """Convert a layout's short form to one line of YAML: TP size and every non-default key."""
    parsed = Layout.parse(layout)
    tree = {"tensor_parallel_size": parsed.tensor_parallel_size}
    tree |= parsed.model_dump(mode="json", exclude_defaults=True)
    return f"{{{', '.join(f'{key}: {json.dumps(value)}' for key, value in tree.items())}}}"


WORDING: Final = Wording(
    _NAMES, "set engine_args.hf_overrides for YaRN, as `qwenfleet plan` writes them", _change
)
