"""A core's outputs reach vLLM's front end unchanged, in either encoding."""

from __future__ import annotations

import os
import warnings
from typing import Any

import msgspec
import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import (
        EngineCoreEvent,
        EngineCoreEventType,
        EngineCoreOutput,
        EngineCoreRequest,
        FinishReason,
    )
    from vllm.v1.metrics.stats import PrefillStats

    from qwenfleet.deployments.vllm_adapter import codec

from qwenfleet.cluster import labels
from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.wire.tokens import TokenIds


def flight() -> Flight:
    return Flight(
        "cmpl-1", TokenIds([1, 2, 3, 4, 5]), b"", None, 0, None, None, trace_headers={"t": "1"}
    )


def output(**fields: Any) -> EngineCoreOutput:
    return EngineCoreOutput("cmpl-1.0@gw-a", [7, 8], **fields)


def crossed(made: EngineCoreOutput, *, is_first: bool = True) -> EngineCoreOutput:
    return codec.to_vllm(flight(), codec.to_wire(made), is_first=is_first, shift_s=2.0)


@pytest.mark.parametrize("reason", [None, *FinishReason])
def test_a_plain_output_crosses_the_wire_without_vllms_bytes(reason: FinishReason | None) -> None:
    made = output(finish_reason=reason, stop_reason="\n")
    assert codec.to_wire(made).extra is None
    came = crossed(made)
    assert (came.request_id, came.new_token_ids) == ("cmpl-1", [7, 8])
    assert (came.finish_reason, came.stop_reason) == (reason, "\n")
    assert came.trace_headers == {"t": "1"}


def test_our_finish_reasons_have_vllms_numbers() -> None:
    assert {reason.name: reason.value for reason in FinishReason} == {
        reason.name: reason.value for reason in labels.FinishReason
    }


def test_an_unknown_finish_reason_is_an_error() -> None:
    with pytest.raises(ValueError, match="99"):
        codec.to_vllm(
            flight(),
            msgspec.structs.replace(codec.to_wire(output()), finish_reason=99),
            is_first=True,
            shift_s=0.0,
        )


def test_cached_tokens_are_reported_with_the_first_output_only() -> None:
    stats = PrefillStats()
    stats.set(num_prompt_tokens=5, num_local_cached_tokens=4, num_external_cached_tokens=0)
    made = output(prefill_stats=stats)
    first, later = crossed(made), crossed(made, is_first=False)
    assert first.prefill_stats is not None
    assert first.prefill_stats.num_cached_tokens == 4
    assert later.prefill_stats is None


def test_events_cross_as_vllms_bytes_and_are_converted_to_our_clock() -> None:
    kinds = [EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED]
    made = output(events=[EngineCoreEvent.new_event(kind, 40.0) for kind in kinds])
    assert codec.to_wire(made).extra is not None
    assert codec.scheduled_at(made) == 40.0
    first, later = crossed(made), crossed(made, is_first=False)
    assert first.request_id == later.request_id == "cmpl-1"
    assert codec.scheduled_at(first) == codec.scheduled_at(later) == 42.0
    assert [event.type for event in later.events or ()] == [EngineCoreEventType.SCHEDULED]
    assert codec.scheduled_at(output()) is None


def test_a_vllm_request_survives_a_round_trip() -> None:
    request = EngineCoreRequest(
        request_id="cmpl-1",
        prompt_token_ids=None,
        mm_features=None,
        sampling_params=SamplingParams(temperature=0.5, seed=3, max_tokens=9),
        pooling_params=None,
        arrival_time=1.0,
        lora_request=None,
        cache_salt="tenant-1",
        data_parallel_rank=None,
    )
    came = codec.decode_request(codec.encode_request(request))
    assert (came.request_id, came.cache_salt) == ("cmpl-1", "tenant-1")
    assert came.sampling_params == request.sampling_params


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x81\xa1\xff\x01", b"\x93\x01\x02\x03"])
def test_bytes_that_are_not_a_request_are_refused_with_a_reason(payload: bytes) -> None:
    with pytest.raises(ValueError, match="cannot decode the request as a vLLM request"):
        codec.decode_request(payload)
