from dataclasses import replace

import pytest

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import H200
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import find_model
from qwenfleet.cluster.planner import speed
from qwenfleet.cluster.planner.plan import Candidate
from qwenfleet.cluster.planner.request import PlanRequest, Routing, Slo
from qwenfleet.cluster.planner.search import plan
from qwenfleet.cluster.planner.tradeoffs import by_context, cells, slo_sentence, within_slo
from qwenfleet.cluster.speed import prediction
from qwenfleet.cluster.speed.cost import Workload


def planned(slo: Slo, layout: str = "TP8+EP8") -> tuple[Candidate, PlanRequest]:
    request = PlanRequest(
        model=find_model("qwen3-coder-480b-fp8"),
        machines=Machines(H200),
        slo=slo,
        layout=Layout.parse(layout),
    )
    return plan(request, speed.speed_of).choice, request


@pytest.mark.parametrize("layout", ["TP8+EP8", "DP8+EP8"])
def test_contexts_extend_to_the_longest_and_fit(layout):
    choice, request = planned(Slo(), layout)
    rows = by_context(choice, request)
    assert rows[-1].context_tokens == choice.max_model_len
    assert [row.context_tokens for row in rows] == sorted({row.context_tokens for row in rows})
    for row in rows:
        assert row.sequences * row.context_tokens <= choice.engine_kv_tokens
        assert cells(row)[1] == f"{row.sequences:,}"
    assert rows[-1].sequences >= 1


def test_the_reported_concurrency_meets_the_slo():
    choice, request = planned(Slo(tpot_s=0.080))
    most = within_slo(choice, request)
    assert most
    shape = speed.shape_of(request, choice.layout)
    load = Workload(most, request.load.prompt_tokens, request.load.output_tokens)
    assert prediction.predict(shape, load).tpot_s.high <= 0.080
    assert f"up to {most:,} concurrent requests" in slo_sentence(choice, request)


def test_skewed_routing_allows_more_requests_and_faster_steps():
    choice, request = planned(Slo(tpot_s=0.050))
    skewed = replace(request, routing=Routing.SKEWED)
    assert (within_slo(choice, skewed) or 0) > (within_slo(choice, request) or 0) > 0
    rows = zip(by_context(choice, skewed), by_context(choice, request), strict=True)
    for fast, slow in rows:
        assert fast.tpot_s
        assert slow.tpot_s
        assert fast.tpot_s.low < slow.tpot_s.low


def test_memory_limits_the_concurrency_under_an_slo():
    choice, request = planned(Slo(tpot_s=3600))
    most = within_slo(choice, request)
    assert most
    assert most * request.load.sequence_tokens <= choice.engine_kv_tokens


def test_without_an_slo_there_is_no_sentence():
    choice, request = planned(Slo(ttft_s=5))
    assert within_slo(choice, request) is None
    assert slo_sentence(choice, request) == ""


def test_an_slo_out_of_reach_is_reported():
    choice, request = planned(Slo(tpot_s=0.0001))
    assert "not even one" in slo_sentence(choice, request)
