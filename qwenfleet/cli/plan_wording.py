"""How an error of the planner is written for users of `qwenfleet plan`."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.plan_errors import Alternative, Quantity, Wording


def _change(change: Alternative) -> str:
    """Name the option for a value that the short form of a layout does not show."""
    match change.quantity:
        case Quantity.CONTEXT:
            tokens = f"{change.value:,} tokens (--context {change.value})"
            return f"a context of {tokens} in {change.layout}"
        case Quantity.KV_DTYPE:
            return f"--kv-dtype {change.value} in {change.layout}"
    return str(change)


WORDING: Final = Wording(
    {
        Quantity.MODEL: "--model",
        Quantity.ACCELERATOR: "--accelerator",
        Quantity.NODES: "--nodes",
        Quantity.GPUS_PER_NODE: "--gpus-per-node",
        Quantity.LAYOUT: "--layout",
        Quantity.CONTEXT: "--context",
        Quantity.LONG_CONTEXT: "--long-context",
        Quantity.KV_DTYPE: "--kv-dtype",
        Quantity.CONCURRENCY: "--concurrency",
        Quantity.PROMPT_TOKENS: "--prompt-tokens",
        Quantity.OUTPUT_TOKENS: "--output-tokens",
    },
    "add --long-context yarn",
    _change,
)
"""Planner errors in terms of this command's options."""
