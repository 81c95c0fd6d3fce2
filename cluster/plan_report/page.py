"""One HTML page with the plans of a grid of models, machines and contexts; it loads nothing. Pure.

The planner computes every plan of the grid in advance; the page's script only looks up rows and
shows them as text.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from qwenfleet.cluster.hardware.accelerators import ACCELERATORS, Accelerator
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import CATALOG, KnownModel
from qwenfleet.cluster.plan_errors import PlanError
from qwenfleet.cluster.plan_report import files
from qwenfleet.cluster.plan_report.table import refusals
from qwenfleet.cluster.planner import settings
from qwenfleet.cluster.planner.memory import GpuMemory
from qwenfleet.cluster.planner.plan import Candidate, Plan
from qwenfleet.cluster.planner.request import FleetLoad, PlanRequest
from qwenfleet.cluster.planner.search import plan
from qwenfleet.cluster.planner.speed import caveats, speed_of
from qwenfleet.cluster.planner.tradeoffs import by_context, cells
from qwenfleet.cluster.units import GIB

T = TypeVar("T")
TEMPLATE: Final = "page.html"
MARK: Final = "__PLANS__"
"""Placeholder for the data in the template."""
MODELS: Final = tuple(sorted(CATALOG, key=lambda model: model.geometry.quantization is None))
"""Quantized models first, because they fit more machines."""
MOST_ROWS: Final = 8
"""Layouts per plan on the page; the rest of the ranking is left out."""


@dataclass(frozen=True)
class Grid:
    """Choices that the page offers."""

    models: tuple[KnownModel, ...] = MODELS
    accelerators: tuple[Accelerator, ...] = ACCELERATORS
    nodes: tuple[int, ...] = (1, 2)
    contexts: tuple[int, ...] = (32_768, 131_072, 262_144)
    load: FleetLoad = field(default_factory=FleetLoad)

    def with_first(
        self,
        model: KnownModel | None,
        accelerator: Accelerator | None,
        nodes: int | None,
        context_tokens: int | None,
    ) -> Grid:
        """Return the grid with the given choices first in each list."""
        return replace(
            self,
            models=_first(model, self.models),
            accelerators=_first(accelerator, self.accelerators),
            nodes=_first(nodes, self.nodes),
            contexts=_first(context_tokens, self.contexts),
        )


def page(grid: Grid) -> str:
    """Build the whole page."""
    text = json.dumps(data(grid), separators=(",", ":"))
    # A script element ends at the first "</script", whatever is around it.
    safe = text.replace("<", "\\u003c")
    template = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    return template.replace(MARK, safe)


def data(grid: Grid) -> dict[str, Any]:
    """Data for the script: the lists, and a plan for each combination of choices."""
    return {
        "models": [model.name for model in grid.models],
        "accelerators": [accelerator.name for accelerator in grid.accelerators],
        "nodes": [str(nodes) for nodes in grid.nodes],
        "contexts": [str(context) for context in grid.contexts],
        "load": f"{grid.load.concurrency} concurrent requests of {grid.load.prompt_tokens:,} + "
        f"{grid.load.output_tokens:,} tokens",
        "plans": {
            f"{model.name}|{accelerator.name}|{nodes}|{context}": _plan(
                grid, model, accelerator, nodes, context
            )
            for model in grid.models
            for accelerator in grid.accelerators
            for nodes in grid.nodes
            for context in grid.contexts
        },
    }


def _plan(
    grid: Grid, model: KnownModel, accelerator: Accelerator, nodes: int, context: int
) -> dict[str, Any]:
    """Data of one plan; only the reason if none fits."""
    try:
        found = plan(_request(grid, model, accelerator, nodes, context), speed_of)
    except PlanError as error:
        return {"reason": str(error), "rows": [], "notes": [], "refused": []}
    notes = [*found.warnings, *caveats(found), *settings.settings(found).notes]
    return {
        "reason": found.reason,
        "rows": [_row(one, found) for one in found.candidates[:MOST_ROWS]],
        "notes": notes,
        "refused": refusals(found.refused),
    }


def _request(
    grid: Grid, model: KnownModel, accelerator: Accelerator, nodes: int, context: int
) -> PlanRequest:
    """Request a plan for the grid's load, with requests shortened to the context. Raises PlanError
    for a context beyond the model's own."""
    output = min(grid.load.output_tokens, max(1, context // 2))
    prompt = max(1, min(grid.load.prompt_tokens, context - output))
    return PlanRequest(
        model=model,
        machines=Machines(accelerator, nodes, accelerator.gpus_per_node),
        context_tokens=context,
        load=FleetLoad(grid.load.concurrency, prompt, output),
    )


def _row(one: Candidate, found: Plan) -> dict[str, Any]:
    chosen = replace(found, candidates=(one,))
    speed, total = one.speed, one.output_tokens_per_s
    slow = [note.rule.value for note in one.judgment.notes if note.is_discouraged]
    env = [f"{key}={value}" for key, value in settings.settings(chosen).env.items()]
    return {
        "layout": one.layout.name,
        "cells": [
            f"{one.engines} x {one.layout.num_gpus}",
            f"{one.kv_tokens:,}",
            f"{one.max_model_len:,}",
            "" if speed is None else speed.ttft_s.text("s"),
            "" if speed is None else (speed.tpot_s * 1000).text("ms"),
            "" if total is None else total.text(""),
            ", ".join(sorted(slow)),
        ],
        "memory": _memory(one.memory),
        "contexts": [cells(row) for row in by_context(one, found.request)],
        "plan": _command(found.request, one),
        "vllm": " ".join([*env, "vllm serve", shlex.join(files.vllm_args(chosen))]),
    }


def _memory(memory: GpuMemory) -> list[list[Any]]:
    """Name, GiB and share in percent of each part of one GPU."""
    parts = [
        ("weights", memory.weight_bytes),
        ("KV cache", max(0, memory.kv_bytes)),
        ("activations, graphs and buffers", memory.reserve_bytes),
        ("not used by vLLM", memory.free_bytes),
    ]
    whole = memory.total_bytes
    return [[name, f"{size / GIB:.1f} GiB", round(100 * size / whole, 2)] for name, size in parts]


def _command(request: PlanRequest, one: Candidate) -> str:
    machines = request.machines
    words = ["qwenfleet", "plan", "--model", request.model.name]
    words += ["--accelerator", machines.accelerator.name, "--nodes", str(machines.nodes)]
    words += ["--context", str(request.context_tokens), "--layout", one.layout.name]
    load = request.load
    if load != FleetLoad():
        words += ["--concurrency", str(load.concurrency)]
        words += ["--prompt-tokens", str(load.prompt_tokens)]
        words += ["--output-tokens", str(load.output_tokens)]
    return shlex.join([*words, "--output", "fleet.yaml"]) + " > fleet.yaml"


def _first(chosen: T | None, others: Sequence[T]) -> tuple[T, ...]:
    if chosen is None:
        return tuple(others)
    return (chosen, *(other for other in others if other != chosen))
