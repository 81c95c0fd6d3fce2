"""Ranking of candidates, with speeds that the tests make up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import H200, MI300X
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import find_model
from qwenfleet.cluster.planner.plan import SloVerdict, SpeedModel
from qwenfleet.cluster.planner.request import FleetLoad, Goal, PlanRequest, Slo
from qwenfleet.cluster.planner.search import plan
from qwenfleet.cluster.speed.cost import Workload
from qwenfleet.cluster.speed.prediction import PredictedSpeed, Range

FP8_480B = find_model("qwen3-coder-480b-fp8")
ON_H200 = Machines(H200)


def made_up(rate: Callable[[Layout], float], tpot_s: Callable[[Layout], float]) -> SpeedModel:
    """Build a speed model from one engine's output rate and seconds per token; spread 2."""

    def model(request: PlanRequest, layout: Layout, concurrency: int) -> PredictedSpeed:
        return PredictedSpeed(
            load=Workload(concurrency, request.load.prompt_tokens, request.load.output_tokens),
            ttft_s=Range(0.5, 2.0),
            tpot_s=Range.around(tpot_s(layout), 2.0),
            output_tokens_per_s=Range.around(rate(layout), 2.0),
            total_tokens_per_s=Range.around(rate(layout), 2.0),
        )

    return model


def by_name(favorite: str, factor: float) -> SpeedModel:
    def is_it(layout: Layout) -> bool:
        return layout.name == favorite

    return made_up(
        lambda layout: 1000 * (factor if is_it(layout) else 1),
        lambda layout: 0.04 / (factor if is_it(layout) else 1),
    )


@pytest.mark.parametrize("goal", [Goal.THROUGHPUT, Goal.LATENCY])
def test_the_layout_with_the_best_prediction_for_the_goal_is_chosen(goal: Goal) -> None:
    found = plan(PlanRequest(FP8_480B, ON_H200, goal=goal), by_name("TP2xDP4+EP8", 2.0))
    assert found.choice.layout.name == "TP2xDP4+EP8"
    assert "(predicted)" in found.reason


def test_predictions_within_five_percent_are_decided_by_the_kv_cache() -> None:
    found = plan(PlanRequest(FP8_480B, ON_H200), by_name("TP2xDP4+EP8", 1.04))
    assert found.choice.layout.name == "TP8+EP8"
    assert "is within 5% of the choice, which has more KV cache: " in found.reason
    assert "2,218,592 tokens instead of" in found.reason


@pytest.mark.parametrize("factor", [1.04, 1.0515])
def test_a_layout_within_the_tie_is_not_reported_as_better(factor: float) -> None:
    request = PlanRequest(FP8_480B, ON_H200, goal=Goal.LATENCY)
    found = plan(request, by_name("TP2xDP4+EP8", factor))
    assert found.choice.layout.name == "TP8+EP8"
    assert "looks better" not in found.reason


def test_a_faster_layout_with_less_context_is_mentioned_not_chosen() -> None:
    found = plan(PlanRequest(FP8_480B, ON_H200), by_name("DP8+EP8", 3.0))
    assert found.choice.layout.name == "TP8+EP8"
    assert (
        "By throughput alone, DP8+EP8 looks better, but it holds only 229,504 of the 262,144 "
        "tokens of context." in found.reason
    )


def test_a_faster_discouraged_layout_is_mentioned_not_chosen() -> None:
    found = plan(PlanRequest(FP8_480B, ON_H200), by_name("TP8", 3.0))
    assert found.choice.layout.name == "TP8+EP8"
    assert "but it loads but is not recommended (rule blocks)" in found.reason


def test_engines_of_a_smaller_layout_add_up() -> None:
    request = PlanRequest(FP8_480B, Machines(MI300X))
    found = plan(request, made_up(lambda layout: 1000, lambda layout: 0.04))
    assert (found.choice.layout.num_gpus, found.choice.engines) == (4, 2)
    assert found.choice.output_tokens_per_s == Range.around(2000, 2.0)


@pytest.mark.parametrize(
    ("slo", "verdict"),
    [
        (Slo(tpot_s=0.1), SloVerdict.KEPT),
        (Slo(tpot_s=0.05), SloVerdict.POSSIBLE),
        (Slo(tpot_s=0.01), SloVerdict.MISSED),
        (Slo(ttft_s=3.0, tpot_s=0.1), SloVerdict.KEPT),
        (Slo(ttft_s=1.0, tpot_s=0.1), SloVerdict.POSSIBLE),
        (Slo(ttft_s=0.1, tpot_s=0.1), SloVerdict.MISSED),
    ],
)
def test_an_slo_is_met_if_the_slow_end_of_the_range_meets_it(slo: Slo, verdict: SloVerdict) -> None:
    found = plan(PlanRequest(FP8_480B, ON_H200, slo=slo), by_name("", 1.0))
    assert {one.slo for one in found.candidates} == {verdict}
    has_warning = any("No layout is predicted to meet" in text for text in found.warnings)
    assert has_warning is (verdict is SloVerdict.MISSED)


def test_meeting_the_slo_ranks_before_speed() -> None:
    def slow(layout: Layout) -> float:
        return 0.02 if layout.name == "TP4xDP2+EP8" else 0.2

    speeds = made_up(lambda layout: 100 if layout.name == "TP4xDP2+EP8" else 1000, slow)
    found = plan(PlanRequest(FP8_480B, ON_H200, slo=Slo(tpot_s=0.05)), speeds)
    assert found.choice.layout.name == "TP4xDP2+EP8"
    assert "the choice is predicted to meet tpot=50ms, and TP8+EP8 to miss it" in found.reason


def test_the_cost_goal_adds_engines_only_to_meet_the_slo() -> None:
    def per_token(layout: Layout) -> float:
        return 0.02

    model = find_model("qwen3-coder-30b-fp8")

    def crowded(request: PlanRequest, layout: Layout, concurrency: int) -> PredictedSpeed:
        base = made_up(lambda _: 1000, lambda _: 0.002 * concurrency)
        found = base(request, layout, concurrency)
        assert found is not None
        return found

    request = PlanRequest(
        model, Machines(H200), goal=Goal.COST, slo=Slo(tpot_s=0.04), load=FleetLoad(concurrency=32)
    )
    found = plan(request, crowded)
    assert (found.choice.layout.name, found.choice.engines) == ("TP1", 4)
    assert found.choice.concurrency == 8
