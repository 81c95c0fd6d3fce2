from __future__ import annotations

from dataclasses import replace

import pytest

from qwenfleet.cluster.hardware.accelerators import H200
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import find_model
from qwenfleet.cluster.plan_errors import ContextTooLong, PlanError, Quantity, WrongQuantity
from qwenfleet.cluster.planner.request import FleetLoad, LongContext, PlanRequest, Slo, parse_slo

CODER = find_model("qwen3-coder-30b")
HERE = Machines(H200)


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("ttft=2s,tpot=50ms", Slo(2.0, 0.05)),
        ("tpot=20ms", Slo(None, 0.02)),
        (" TTFT = 1.5s ", Slo(1.5, None)),
        ("tpot=50ms, ttft=800ms", Slo(0.8, 0.05)),
    ],
)
def test_an_slo_is_parsed(text: str, slo: Slo) -> None:
    assert parse_slo(text) == slo
    assert parse_slo(slo.name) == slo


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("", "'' is not part"),
        ("2s", "'2s' is not part"),
        ("ttft=2", "'ttft=2' is not part"),
        ("ttft=-2s", "is not part"),
        ("ttft=2s,", "'' is not part"),
        ("latency=2s", "'latency=2s' is not part"),
        ("ttft=2s,ttft=3s", "sets ttft twice"),
        ("tpot=0ms", "tpot is 0ms"),
        ("ttft=nans", "is not part"),
    ],
)
def test_a_malformed_slo_is_refused(text: str, reported: str) -> None:
    with pytest.raises(PlanError, match=reported):
        parse_slo(text)


@pytest.mark.parametrize("field", ["concurrency", "prompt_tokens", "output_tokens"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_load_below_1_is_refused_by_its_quantity(field: str, value: int) -> None:
    with pytest.raises(WrongQuantity, match=f" is {value}. Give a number of 1 or more") as caught:
        FleetLoad(**{field: value})
    assert (caught.value.quantity, caught.value.value) == (Quantity[field.upper()], value)


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_context_below_1_is_refused(tokens: int) -> None:
    with pytest.raises(WrongQuantity, match=f"the context is {tokens}"):
        PlanRequest(CODER, HERE, context_tokens=tokens)


def test_a_context_beyond_the_model_is_refused_with_the_long_context_method() -> None:
    with pytest.raises(ContextTooLong, match=r"1,000,000 .* exceeds the 262,144.*YaRN") as caught:
        PlanRequest(CODER, HERE, context_tokens=1_000_000)
    assert (caught.value.context_tokens, caught.value.longest_tokens) == (1_000_000, 262_144)


def test_yarn_reaches_four_times_the_models_own_context_and_no_more() -> None:
    yarn = LongContext.YARN
    request = PlanRequest(CODER, HERE, context_tokens=1_048_576, long_context=yarn)
    assert request.wanted_context_tokens == 1_048_576
    with pytest.raises(PlanError, match="more than 4 times the 262,144"):
        PlanRequest(CODER, HERE, context_tokens=1_048_577, long_context=yarn)


def test_a_model_with_yarn_takes_its_longer_context() -> None:
    long = replace(CODER.geometry, long_context_tokens=1_048_576)
    request = PlanRequest(replace(CODER, geometry=long), HERE, context_tokens=1_000_000)
    assert request.wanted_context_tokens == 1_000_000


def test_requests_longer_than_the_context_are_refused() -> None:
    with pytest.raises(PlanError, match=r"8,192 \+ 512 tokens is longer than the context of 8,192"):
        PlanRequest(CODER, HERE, context_tokens=8192)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_an_impossible_memory_share_is_refused(share: float) -> None:
    with pytest.raises(PlanError, match="share of GPU memory"):
        PlanRequest(CODER, HERE, utilization=share)


def test_a_request_longer_than_the_models_own_context_is_refused() -> None:
    with pytest.raises(PlanError, match="longer than the context of 262,144"):
        PlanRequest(CODER, HERE, load=FleetLoad(prompt_tokens=300_000))


@pytest.mark.parametrize("context", [1, 2, 100, 4096, 8704, 262_144])
def test_the_default_load_is_shortened_to_the_context(context: int) -> None:
    load = FleetLoad.within(context)
    assert load.sequence_tokens <= max(2, context)
    assert (load == FleetLoad()) is (context >= 8704)


def test_an_engine_must_hold_a_request_if_no_context_is_set() -> None:
    request = PlanRequest(CODER, HERE, load=FleetLoad(prompt_tokens=100_000))
    assert request.least_context_tokens == 100_512
    assert PlanRequest(CODER, HERE, load=FleetLoad(prompt_tokens=1)).least_context_tokens == 8192
