"""The planner's speeds, from the model that published measurements calibrate. Pure."""

from __future__ import annotations

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.planner.plan import Plan
from qwenfleet.cluster.planner.request import PlanRequest
from qwenfleet.cluster.speed import prediction
from qwenfleet.cluster.speed.cost import Workload
from qwenfleet.cluster.speed.steps import EngineShape


def speed_of(request: PlanRequest, layout: Layout, concurrency: int) -> prediction.Speed:
    """A `SpeedModel`: one engine of this layout under its share of the request's load."""
    return prediction.predict(shape_of(request, layout), _workload(request, concurrency))


def doubts(plan: Plan) -> list[str]:
    """What a reader of the plan's speeds should know."""
    choice = plan.choice
    shape = shape_of(plan.request, choice.layout)
    return prediction.doubts(shape, _workload(plan.request, choice.concurrency))


def shape_of(request: PlanRequest, layout: Layout) -> EngineShape:
    """One engine of a layout, as the speed model takes it."""
    machines = request.machines
    geometry = request.model.geometry
    return EngineShape(geometry, machines.accelerator, layout, request.kv_dtype)


def _workload(request: PlanRequest, concurrency: int) -> Workload:
    load = request.load
    return Workload(concurrency, load.prompt_tokens, load.output_tokens, request.routing_skew)
