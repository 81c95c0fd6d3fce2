"""What to say when no layout fits: the rule that the nearest one breaks, and what works. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from qwenfleet.cluster.accelerators import ACCELERATORS
from qwenfleet.cluster.catalog import CATALOG
from qwenfleet.cluster.errors import NoLayoutFits, PlanError
from qwenfleet.cluster.geometry import KVDtype
from qwenfleet.cluster.layouts import Machines
from qwenfleet.cluster.plan import Candidate, Refused
from qwenfleet.cluster.plan_choice import ranked
from qwenfleet.cluster.plan_request import PlanRequest
from qwenfleet.cluster.planner_layouts import MAX_NODES_PER_ENGINE
from qwenfleet.cluster.rules import Rule

Search = Callable[[PlanRequest], tuple[list[Candidate], list[Refused]]]
MOST_WAYS_OUT = 4
SIZES = (Rule.MEMORY, Rule.CONTEXT)


def nothing_fits(request: PlanRequest, refused: list[Refused], search: Search) -> NoLayoutFits:
    """The error for a request of which every layout was refused."""
    nearest = min(refused, key=_distance)
    breach = nearest.breaches[0]
    model, machines = request.model.short_name, request.machines.name
    ways = _ways_out(request, nearest, search)
    remedy = "; or ".join(way for way, _ in zip(ways, range(MOST_WAYS_OUT), strict=False))
    if request.layout is not None:
        said = f"{model} cannot run in {request.layout.name} on {machines}:"
    else:
        said = f"no layout of {model} fits {machines}: in {nearest.layout.name}, the nearest,"
    return NoLayoutFits(
        f"{said} {breach.sentence} (rule {breach.rule.value})",
        f"What works: {remedy}." if remedy else "No machine that the planner knows holds it.",
        breach.rule.value,
    )


def _distance(refused: Refused) -> tuple[bool, bool, int, int]:
    """Too little memory is nearer than what would not load; then the more room the nearer."""
    rules = {breach.rule for breach in refused.breaches}
    memory = refused.memory
    return (
        not rules <= set(SIZES),
        not rules <= {*SIZES, Rule.NODES},
        -memory.kv_tokens,
        -memory.kv_bytes,
    )


def _ways_out(request: PlanRequest, nearest: Refused, search: Search) -> Iterator[str]:
    """Each with the layout that it leads to; the least change first."""
    free = replace(request, layout=None)
    here = _best(free, search)
    if request.layout is not None and here:
        yield f"{here.layout.name} on the same machines"
    holds_a_request = nearest.memory.kv_tokens >= request.load.sequence_tokens
    if nearest.breaches[0].rule is Rule.CONTEXT and request.context_tokens and holds_a_request:
        tokens = nearest.memory.kv_tokens
        yield f"a context of {tokens:,} tokens (--context {tokens}) in {nearest.layout.name}"
    if here:
        return
    with_fp8_kv = _best(replace(free, kv_dtype=KVDtype.FP8), search)
    if request.kv_dtype is not KVDtype.FP8 and with_fp8_kv:
        yield f"--kv-dtype fp8 in {with_fp8_kv.layout.name}"
    fp8 = next((one for one in CATALOG if one.name == f"{request.model.name}-FP8"), None)
    found = _best(replace(free, model=fp8), search) if fp8 else None
    if fp8 and found:
        yield f"{fp8.short_name} in {found.layout.name} on the same machines"
    for kind in (_more(request.machines), _others(request.machines)):
        for machines in kind:
            found = _best(replace(free, machines=machines), search)
            if found:
                yield f"{found.layout.name} on {machines.name}"
                break


def _more(machines: Machines) -> Iterator[Machines]:
    """Fuller nodes of the same kind, then more of them."""
    usual = max(machines.accelerator.gpus_per_node, machines.gpus_per_node)
    if machines.gpus_per_node < usual:
        yield replace(machines, gpus_per_node=usual)
    for nodes in range(machines.nodes + 1, MAX_NODES_PER_ENGINE + 1):
        yield Machines(machines.accelerator, nodes, usual)


def _others(machines: Machines) -> Iterator[Machines]:
    """One usual server of each other kind, the smallest first."""
    for accelerator in sorted(ACCELERATORS, key=lambda one: one.memory_gib):
        if accelerator.name != machines.accelerator.name:
            yield Machines(accelerator, 1, accelerator.gpus_per_node)


def _best(request: PlanRequest, search: Search) -> Candidate | None:
    try:
        candidates, _ = search(request)
    except PlanError:
        return None
    return ranked(candidates, request)[0] if candidates else None
