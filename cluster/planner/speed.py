"""Predicted speeds for the planner, from the calibrated speed model. Pure."""

from __future__ import annotations

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.planner.plan import Plan
from qwenfleet.cluster.planner.request import PlanRequest
from qwenfleet.cluster.speed import prediction
from qwenfleet.cluster.speed.cost import Workload
from qwenfleet.cluster.speed.steps import EngineShape


def speed_of(request: PlanRequest, layout: Layout, concurrency: int) -> prediction.PredictedSpeed:
    """Predict one engine of this layout under its share of the load; a `SpeedModel`."""
    return prediction.predict(shape_of(request, layout), _workload(request, concurrency))


def caveats(plan: Plan) -> list[str]:
    """Caveats about the plan's predicted speeds."""
    choice = plan.choice
    shape = shape_of(plan.request, choice.layout)
    return prediction.caveats(shape, _workload(plan.request, choice.concurrency))


def shape_of(request: PlanRequest, layout: Layout) -> EngineShape:
    """Describe one engine of a layout for the speed model."""
    machines = request.machines
    geometry = request.model.geometry
    return EngineShape(geometry, machines.accelerator, layout, request.kv_dtype)


def _workload(request: PlanRequest, concurrency: int) -> Workload:
    load = request.load
    return Workload(concurrency, load.prompt_tokens, load.output_tokens, request.routing_skew)
