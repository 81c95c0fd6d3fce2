"""The planner: find the layouts of a model that fit some machines, and choose one. Pure."""

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
    RefusedLayout,
    SloVerdict,
    SpeedModel,
    no_speed,
)
from qwenfleet.cluster.planner.ranking import ranked, reason, warnings
from qwenfleet.cluster.planner.request import Goal, PlanRequest
from qwenfleet.cluster.planner.rules import Judgment, judge_memory, judge_nodes, judge_shape

if TYPE_CHECKING:
    from qwenfleet.cluster.speed.prediction import PredictedSpeed

Searched = tuple[list[Candidate], list[RefusedLayout]]


def plan(request: PlanRequest, speed_model: SpeedModel = no_speed) -> Plan:
    """Judge every layout, or only the requested one, and choose the best.

    Raises NoLayoutFits, with alternatives, if no layout is legal and fits.
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
    """Return unordered candidates and the refused layouts.

    Pipeline parallelism is tried only if nothing else fits: its stages wait for each other at each
    decode step.
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
        judgment, memory = judge(layout, request)
        if judgment.is_legal:
            candidates.append(_candidate(layout, memory, judgment, request, speed_model))
        else:
            refused.append(RefusedLayout(layout, judgment.breaches, memory))
    return candidates, refused


def judge(layout: Layout, request: PlanRequest) -> tuple[Judgment, GpuMemory]:
    """Apply all rules to one layout; memory is judged only if the layout would load."""
    geometry, machines = request.model.geometry, request.machines
    accelerator = machines.accelerator
    shape = judge_shape(geometry, layout, accelerator)
    place = judge_nodes(layout, nodes=machines.nodes, gpus_per_node=machines.gpus_per_node)
    memory = gpu_memory(
        geometry,
        layout,
        accelerator,
        kv_dtype=request.kv_dtype,
        utilization=request.utilization,
    )
    breaches = shape.breaches + place.breaches
    if not breaches:
        breaches = judge_memory(accelerator, memory, request.least_context_tokens).breaches
    return Judgment(breaches, shape.notes), memory


def _candidate(
    layout: Layout,
    memory: GpuMemory,
    judgment: Judgment,
    request: PlanRequest,
    speed_model: SpeedModel,
) -> Candidate:
    """Use as many engines as fit or, for the cost goal, the fewest that carry the load."""
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
            judgment=judgment,
            max_model_len=min(wanted, memory.kv_tokens),
            holds_wanted_context=memory.kv_tokens >= wanted,
            concurrency=concurrency,
            max_num_seqs=sequence_limit(held, -(-share // ranks)),
            speed=speed,
            slo=_slo_verdict(request, speed),
        )
        if share <= room and found.slo is SloVerdict.KEPT:  # fewest engines that suffice
            break
    return found


def _slo_verdict(request: PlanRequest, speed: PredictedSpeed | None) -> SloVerdict:
    if speed is None:
        return SloVerdict.KEPT
    pairs = [(request.slo.ttft_s, speed.ttft_s), (request.slo.tpot_s, speed.tpot_s)]
    limits = [(found.low, found.high, limit) for limit, found in pairs if limit is not None]
    if any(low > limit for low, _, limit in limits):
        return SloVerdict.MISSED
    if any(high > limit for _, high, limit in limits):
        return SloVerdict.POSSIBLE
    return SloVerdict.KEPT
