"""A plan for a terminal: a ranked table, the choice and why, one GPU's memory as a bar."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qwenfleet.cluster.planner.memory import GpuMemory
from qwenfleet.cluster.planner.plan import Candidate, Plan, RefusedLayout, SloVerdict
from qwenfleet.cluster.planner.ranking import NOT_SEPARATED
from qwenfleet.cluster.planner.rules import Rule
from qwenfleet.cluster.planner.tradeoffs import by_context, cells, limit_sentence, slo_sentence
from qwenfleet.cluster.units import GIB

BAR_CELLS: Final = 60
SHADES: Final = {
    "weights": "█",
    "KV cache": "▓",
    "activations": "▒",
    "graphs and buffers": "░",
    "free": "·",
}
"""Shades of the memory bar, distinguishable without color."""
SLO_WORDS: Final = {
    SloVerdict.KEPT: "met",
    SloVerdict.POSSIBLE: "possible",
    SloVerdict.MISSED: "missed",
}


def show(plan: Plan, console: Console, caveats: list[str]) -> None:
    """Print the whole plan; `caveats` are those of the predictions."""
    request, load = plan.request, plan.request.load
    routing = f", {request.routing.value} routing" if request.model.geometry.is_moe else ""
    console.print(
        f"{request.model.name} on {request.machines.name}, goal {request.goal.value}; "
        f"{load.concurrency} concurrent requests of {load.prompt_tokens:,} + "
        f"{load.output_tokens:,} tokens{routing}. "
        "Memory is computed, speed is predicted; nothing here was measured.",
        highlight=False,
    )
    console.print(table(plan))
    for line in refusals(plan.refused):
        console.print(line, style="dim", highlight=False)
    console.print(f"\nChoice: {plan.reason}", style="bold", highlight=False)
    name = plan.choice.layout.name
    console.print(f"\nOne engine of {name}, full of sequences of one length with cached prompts:")
    console.print(contexts(plan))
    limits = [limit_sentence(plan.choice, request)]
    limits += [slo_sentence(plan.choice, request)] if request.slo.tpot_s else []
    for text in (*limits, *plan.warnings, *caveats, NOT_SEPARATED):
        console.print(f"- {text}", highlight=False)


def table(plan: Plan) -> Table:
    """Table of candidates, best first."""
    has_slo = bool(plan.request.slo.name)
    found = Table(box=None, pad_edge=False, header_style="bold")
    found.add_column("layout", no_wrap=True)
    numbers = ("engines x GPUs", "weights/GPU", "KV tokens", "context", "running")
    for name in (*numbers, "first token", "per token", "output tokens/s"):
        found.add_column(name.replace(" ", "\n", 1), justify="right", no_wrap=True)
    if has_slo:
        found.add_column("SLO", no_wrap=True)
    found.add_column("not recommended".replace(" ", "\n"))
    for one in plan.candidates:
        found.add_row(*_row(one, has_slo=has_slo))
    return found


def _row(one: Candidate, *, has_slo: bool) -> list[str]:
    slow = {note.rule.value for note in one.judgment.notes if note.is_discouraged}
    cells = [
        one.layout.name,
        f"{one.engines} x {one.layout.num_gpus}",
        f"{one.memory.weight_bytes / GIB:.1f} GiB",
        f"{one.kv_tokens:,}",
        f"{one.max_model_len:,}",
        str(one.engines * one.concurrency),
    ]
    total = one.output_tokens_per_s
    if one.speed is None or total is None:
        cells += ["", "", ""]
    else:
        cells += [one.speed.ttft_s.text("s"), (one.speed.tpot_s * 1000).text("ms"), total.text("")]
    return cells + ([SLO_WORDS[one.slo]] if has_slo else []) + [", ".join(sorted(slow))]


def contexts(plan: Plan) -> Table:
    """Table of how many sequences of each length the choice holds, and its speed then."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("prompt + output", "concurrent", "per token", "output tokens/s"):
        found.add_column(name, justify="right", no_wrap=True)
    for row in by_context(plan.choice, plan.request):
        found.add_row(*cells(row))
    return found


def refusals(refused: tuple[RefusedLayout, ...]) -> list[str]:
    """Return one line per rule: the layouts that break it first, and the first one's remark."""
    by_rule: dict[Rule, list[RefusedLayout]] = defaultdict(list)
    for one in refused:
        by_rule[one.breaches[0].rule].append(one)
    lines = []
    for rule, broken in by_rule.items():
        first = broken[0]
        names = ", ".join(one.layout.name for one in broken[:4])
        more = ", ..." if len(broken) > 4 else ""
        sentence = first.breaches[0].sentence
        lines.append(f"refused by {rule.value}: {names}{more} ({first.layout.name}: {sentence})")
    return lines


def explain(layout: str, memory: GpuMemory, max_model_len: int) -> RenderableType:
    """Show one GPU's memory as a bar, and each part in GiB."""
    parts = {
        "weights": memory.weight_bytes,
        "KV cache": max(0, memory.kv_bytes),
        "activations": memory.activation_bytes,
        "graphs and buffers": memory.graph_bytes,
        "free": memory.free_bytes,
    }
    found = Table(box=None, pad_edge=False, show_header=False)
    for name, size in parts.items():
        share = size / memory.total_bytes
        note = ""
        if name == "KV cache":
            note = f"{memory.kv_tokens:,} tokens of {memory.kv_bytes_per_token:,} bytes each"
        found.add_row(SHADES[name] * 2, name, f"{size / GIB:.1f} GiB", f"{share:.0%}", note)
    head = (
        f"{layout}: one GPU of {memory.total_bytes / GIB:.1f} GiB, of which vLLM may use "
        f"{memory.usable_bytes / GIB:.1f}; a sequence can have up to {max_model_len:,} tokens"
    )
    return Group(Text(head), Text(bar(parts)), found)


def bar(parts: dict[str, int], cells: int = BAR_CELLS) -> str:
    """Draw a bar of exactly `cells` cells in proportion to the parts."""
    total = sum(parts.values())
    drawn, passed, text = 0, 0, ""
    for name, size in parts.items():
        passed += size
        upto = round(passed / total * cells)
        text += SHADES[name] * (upto - drawn)
        drawn = upto
    return text
