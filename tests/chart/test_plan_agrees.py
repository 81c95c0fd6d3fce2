"""The chart refuses what the planner refuses, and what it only discourages for scale blocks."""

from __future__ import annotations

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import H100
from qwenfleet.cluster.models.catalog import CATALOG
from qwenfleet.cluster.plan_errors import NoLayoutFits
from qwenfleet.cluster.planner.fleet_defaults import completed
from qwenfleet.cluster.planner.rules import Rule, judge_shape

pytestmark = pytest.mark.chart

QUANTIZED = [model for model in CATALOG if model.geometry.quantization is not None]
LAYOUTS = [
    Layout(tensor_parallel_size=tp, data_parallel_size=dp, expert_parallel=is_expert_parallel)
    for tp, dp in [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (8, 1), (2, 2), (4, 2), (1, 8)]
    for is_expert_parallel in (False, True)
]


def complaints(geometry, layout):
    """The planner's remarks, breaches or notes, on how an expert is split."""
    judgment = judge_shape(geometry, layout, H100)
    remarks = (*judgment.breaches, *judgment.notes)
    return [
        remark.sentence
        for remark in remarks
        if remark.rule in {Rule.BLOCKS, Rule.INTERMEDIATE}
        and "intermediate_size" in remark.sentence
    ]


def is_refused(values):
    """Whether the planner refuses the layout, by its shape or its memory."""
    try:
        completed(FleetConfig.model_validate(values["fleet"]))
    except NoLayoutFits:
        return True
    return False


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("model", QUANTIZED, ids=lambda model: model.short_name)
def test_the_chart_refuses_the_layouts_that_the_planner_complains_of(
    render, refused, model, layout
):
    values = {
        "fleet": {
            "models": [
                {
                    "id": "coder",
                    "source": model.name,
                    "accelerator": "H100",
                    "layout": layout.model_dump(exclude_defaults=True) or {"nodes": 1},
                }
            ]
        }
    }
    if is_refused(values):
        with pytest.raises(refused, match="cannot run in this layout on H100"):
            render(values)
    elif complaints(model.geometry, layout):
        block = max(model.geometry.quantization.block)
        with pytest.raises(refused, match=f"into whole quantization blocks of {block};"):
            render(values)
    else:
        assert render(values)
