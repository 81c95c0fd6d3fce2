"""The planner: which layouts of a model fit some machines, and which of them to take. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.planner import alternatives
from qwenfleet.cluster.planner.layouts import all_layouts
from qwenfleet.cluster.planner.memory import SEQUENCES, GpuMemory, gpu_memory, sequence_limit
from qwenfleet.cluster.planner.plan import (
    Candidate,
    Plan,
    Refused,
    SloVerdict,
    SpeedModel,
    no_speed,
)
from qwenfleet.cluster.planner.ranking import ranked, reason, warnings
from qwenfleet.cluster.planner.request import Goal, PlanRequest
from qwenfleet.cluster.planner.rules import Judgement, judge_memory, judge_nodes, judge_shape

if TYPE_CHECKING:
    from qwenfleet.cluster.speed.prediction import Speed

Searched = tuple[list[Candidate], list[Refused]]


def plan(request: PlanRequest, speed_model: SpeedModel = no_speed) -> Plan:
    """Judge every layout, or the one that is asked for, and choose.

    Raises NoLayoutFits when none is legal and fits, with the nearest that is.
    """
    candidates, refused = search(request, speed_model)
    if not candidates:
        raise alternatives.nothing_fits(request, refused, search)
    order = ranked(candidates, request)
    return Plan(
        request=request,
        candidates=tuple(order),
        refused=tuple(refused),
        reason=reason(order, request),
        warnings=tuple(warnings(order[0], request)),
    )


def search(request: PlanRequest, speed_model: SpeedModel = no_speed) -> Searched:
    """Candidates in no order, and what was refused.

    Pipeline parallelism is looked at only when nothing else fits: at each step of decoding its
    stages wait for each other.
    """
    if request.layout is not None:
        return _judged([request.layout], request, speed_model)
    candidates, refused = _judged(all_layouts(request.machines), request, speed_model)
    if candidates:
        return candidates, refused
    every = all_layouts(request.machines, with_pipeline=True)
    piped = (layout for layout in every if layout.pipeline_parallel_size > 1)
    found, broken = _judged(piped, request, speed_model)
    return found, refused + broken


def _judged(layouts: Iterable[Layout], request: PlanRequest, speed_model: SpeedModel) -> Searched:
    candidates, refused = [], []
    for layout in layouts:
        judgement, memory = judge(layout, request)
        if judgement.is_legal:
            candidates.append(_candidate(layout, memory, judgement, request, speed_model))
        else:
            refused.append(Refused(layout, judgement.breaches, memory))
    return candidates, refused


def judge(layout: Layout, request: PlanRequest) -> tuple[Judgement, GpuMemory]:
    """All rules on one layout; memory is asked only of one that would load."""
    geometry, machines = request.model.geometry, request.machines
    accelerator = machines.accelerator
    shape = judge_shape(geometry, layout, accelerator)
    place = judge_nodes(layout, nodes=machines.nodes, gpus_per_node=machines.gpus_per_node)
    memory = gpu_memory(
        geometry,
        layout,
        accelerator,
        kv_dtype=request.kv_dtype,
        utilisation=request.utilisation,
    )
    breaches = shape.breaches + place.breaches
    if not breaches:
        breaches = judge_memory(accelerator, memory, request.least_context_tokens).breaches
    return Judgement(breaches, shape.notes), memory


def _candidate(
    layout: Layout,
    memory: GpuMemory,
    judgement: Judgement,
    request: PlanRequest,
    speed_model: SpeedModel,
) -> Candidate:
    """With as many engines as fit; for the least cost with as few as carry the load."""
    most = request.machines.engines(layout)
    counts = range(1, most + 1) if request.goal is Goal.COST else [most]
    wanted = request.wanted_context_tokens
    ranks = layout.data_parallel_size
    held = memory.sequences(request.load.sequence_tokens)
    room = min(held, SEQUENCES) * ranks
    for engines in counts:
        share = -(-request.load.concurrency // engines)
        concurrency = max(1, min(share, room))
        speed = speed_model(request, layout, concurrency)
        found = Candidate(
            layout=layout,
            engines=engines,
            memory=memory,
            judgement=judgement,
            max_model_len=min(wanted, memory.kv_tokens),
            holds_wanted_context=memory.kv_tokens >= wanted,
            concurrency=concurrency,
            max_num_seqs=sequence_limit(held, -(-share // ranks)),
            speed=speed,
            slo=_slo_verdict(request, speed),
        )
        if share <= room and found.slo is SloVerdict.KEPT:
            break
    return found


def _slo_verdict(request: PlanRequest, speed: Speed | None) -> SloVerdict:
    if speed is None:
        return SloVerdict.KEPT
    promised = [(request.slo.ttft_s, speed.ttft_s), (request.slo.tpot_s, speed.tpot_s)]
    kept = [(found.low, found.high, limit) for limit, found in promised if limit is not None]
    if any(low > limit for low, _, limit in kept):
        return SloVerdict.MISSED
    if any(high > limit for _, high, limit in kept):
        return SloVerdict.POSSIBLE
    return SloVerdict.KEPT
