"""The planner's speeds, from the model that published measurements calibrate. Pure."""

from __future__ import annotations

from qwenfleet.cluster import performance
from qwenfleet.cluster.layout import Layout
from qwenfleet.cluster.plan import Plan
from qwenfleet.cluster.plan_request import PlanRequest
from qwenfleet.cluster.speed_terms import EngineShape
from qwenfleet.cluster.step_cost import Workload


def speed_of(request: PlanRequest, layout: Layout, concurrency: int) -> performance.PredictedSpeed:
    """A `SpeedModel`: one engine of this layout under its share of the request's load."""
    return performance.predict(shape_of(request, layout), _workload(request, concurrency))


def doubts(plan: Plan) -> list[str]:
    """What a reader of the plan's speeds should know."""
    choice = plan.choice
    shape = shape_of(plan.request, choice.layout)
    return performance.doubts(shape, _workload(plan.request, choice.concurrency))


def shape_of(request: PlanRequest, layout: Layout) -> EngineShape:
    """One engine of a layout, as the speed model takes it."""
    machines = request.machines
    geometry = request.model.geometry
    return EngineShape(geometry, machines.accelerator, layout, request.kv_dtype)


def _workload(request: PlanRequest, concurrency: int) -> Workload:
    load = request.load
    return Workload(concurrency, load.prompt_tokens, load.output_tokens, request.routing_skew)
