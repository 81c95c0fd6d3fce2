"""The error when no layout fits: the rule that the closest one breaks, and what works. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from qwenfleet.cluster.hardware.accelerators import ACCELERATORS
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import CATALOG
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.plan_errors import Alternative, NoLayoutFits, PlanError, Quantity
from qwenfleet.cluster.planner.layouts import MAX_NODES_PER_ENGINE
from qwenfleet.cluster.planner.plan import Candidate, RefusedLayout
from qwenfleet.cluster.planner.ranking import ranked
from qwenfleet.cluster.planner.request import PlanRequest
from qwenfleet.cluster.planner.rules import Rule

Search = Callable[[PlanRequest], tuple[list[Candidate], list[RefusedLayout]]]
MOST_CHANGES = 4
SIZES = (Rule.MEMORY, Rule.CONTEXT)


def nothing_fits(
    request: PlanRequest, refused: list[RefusedLayout], search: Search
) -> NoLayoutFits:
    """Build the error for a request whose layouts were all refused."""
    nearest = min(refused, key=_distance)
    breach = nearest.breaches[0]
    model, machines = request.model.short_name, request.machines.name
    changes = tuple(islice(_changes(request, nearest, search), MOST_CHANGES))
    if request.layout is not None:
        subject = f"{model} cannot run in {request.layout.name} on {machines}:"
    else:
        subject = f"no layout of {model} fits {machines}. The closest is {nearest.layout.name}:"
    return NoLayoutFits(
        f"{subject} {breach.sentence} (rule {breach.rule.value})",
        breach.rule.value,
        changes,
    )


def _distance(refused: RefusedLayout) -> tuple[bool, bool, int, int]:
    """Sort key: layouts that lack only memory before those that would not load, roomiest first."""
    rules = {breach.rule for breach in refused.breaches}
    memory = refused.memory
    return (
        not rules <= set(SIZES),
        not rules <= {*SIZES, Rule.NODES},
        -memory.kv_tokens,
        -memory.kv_bytes,
    )


def _changes(request: PlanRequest, nearest: RefusedLayout, search: Search) -> Iterator[Alternative]:
    """Yield single changes that each make a layout fit, smallest change first."""
    free = replace(request, layout=None)
    here = _best(free, search)
    machines = request.machines.name
    if request.layout is not None and here:  # only the chosen layout is at fault
        yield Alternative(Quantity.LAYOUT, here.layout.name, here.layout.name, machines)
    tokens = nearest.memory.kv_tokens
    holds_a_request = tokens >= request.load.sequence_tokens
    if nearest.breaches[0].rule is Rule.CONTEXT and request.context_tokens and holds_a_request:
        yield Alternative(Quantity.CONTEXT, tokens, nearest.layout.name, machines)
    if here:  # the same machines are enough
        return
    with_fp8_kv = _best(replace(free, kv_dtype=KVDtype.FP8), search)
    if request.kv_dtype is not KVDtype.FP8 and with_fp8_kv:
        yield Alternative(Quantity.KV_DTYPE, KVDtype.FP8.value, with_fp8_kv.layout.name, machines)
    fp8 = next((one for one in CATALOG if one.name == f"{request.model.name}-FP8"), None)
    found = _best(replace(free, model=fp8), search) if fp8 else None
    if fp8 and found:
        yield Alternative(Quantity.MODEL, fp8.name, found.layout.name, machines)
    yield from _other_machines(free, search)


def _other_machines(request: PlanRequest, search: Search) -> Iterator[Alternative]:
    """Yield the smallest machines that hold the model: of the same kind, then of another kind."""
    for kind in (_more(request.machines), _others(request.machines)):
        for quantity, machines in kind:
            found = _best(replace(request, machines=machines), search)
            if found:
                values: dict[Quantity, str | int] = {
                    Quantity.NODES: machines.nodes,
                    Quantity.GPUS_PER_NODE: machines.gpus_per_node,
                    Quantity.ACCELERATOR: machines.accelerator.name,
                }
                yield Alternative(quantity, values[quantity], found.layout.name, machines.name)
                break


def _more(machines: Machines) -> Iterator[tuple[Quantity, Machines]]:
    """Full nodes of the same kind, then more of them."""
    usual = max(machines.accelerator.gpus_per_node, machines.gpus_per_node)
    if machines.gpus_per_node < usual:
        yield Quantity.GPUS_PER_NODE, replace(machines, gpus_per_node=usual)
    for nodes in range(machines.nodes + 1, MAX_NODES_PER_ENGINE + 1):
        yield Quantity.NODES, Machines(machines.accelerator, nodes, usual)


def _others(machines: Machines) -> Iterator[tuple[Quantity, Machines]]:
    """One standard server of each other kind, smallest GPU memory first."""
    for accelerator in sorted(ACCELERATORS, key=lambda one: one.memory_gib):
        if accelerator.name != machines.accelerator.name:
            yield Quantity.ACCELERATOR, Machines(accelerator, 1, accelerator.gpus_per_node)


def _best(request: PlanRequest, search: Search) -> Candidate | None:
    try:
        candidates, _ = search(request)
    except PlanError:
        return None
    return ranked(candidates, request)[0] if candidates else None
