"""Codec: converts vLLM's requests and outputs to bytes and frames of the wire, and back. Pure.

`to_wire` runs in an engine, `to_vllm` in a gateway, and each undoes the other: a plain output
crosses as fields of `Output`, any other one as vLLM's own bytes in `Output.extra`.

vLLM internals used here (0.32): EngineCoreRequest/Output, FinishReason, PrefillStats,
MsgpackEncoder/Decoder.
"""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec
from vllm import __version__
from vllm.v1.engine import (
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.wire.frames import Output

_encoder: Final = MsgpackEncoder(size_threshold=1 << 40)  # no out-of-band buffers
_requests: Final = MsgpackDecoder(EngineCoreRequest)
_outputs: Final = MsgpackDecoder(EngineCoreOutput)


def vllm_version() -> str:
    """The version of vLLM whose requests and outputs this process encodes."""
    return str(__version__)


def encode_request(request: EngineCoreRequest) -> bytes:
    """Encode a request for `Submit.request`."""
    return cast(bytes, _encoder.encode(request)[0])


def decode_request(payload: bytes) -> EngineCoreRequest:
    """Decode `Submit.request`. Raises ValueError, with a sentence, if this vLLM cannot read it."""
    try:
        request: EngineCoreRequest = _requests.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"cannot decode the request as a vLLM request: {error}") from error
    return request


def to_wire(output: EngineCoreOutput) -> Output[str]:
    """Convert a core's output for the wire."""
    is_plain = (
        output.new_logprobs is None
        and output.new_prompt_logprobs_tensors is None
        and output.events is None
        and output.kv_transfer_params is None
        and output.routed_experts is None
        and output.spec_decode_metrics is None
        and output.prompt_token_id_logprobs is None
        and not output.num_nans_in_logits
    )
    # trace_headers are left out: the gateway has them.
    stats = output.prefill_stats
    return Output(
        wire_id=output.request_id,
        token_ids=list(output.new_token_ids),
        finish_reason=None if output.finish_reason is None else int(output.finish_reason),
        stop_reason=output.stop_reason,
        cached_tokens=stats.num_cached_tokens if stats is not None else None,
        extra=None if is_plain else cast(bytes, _encoder.encode(output)[0]),
    )


def to_vllm(
    flight: Flight, output: Output[Any], *, is_first: bool, shift_s: float
) -> EngineCoreOutput:
    """Convert an output from the wire for AsyncLLM. Adding `shift_s` to a time of the engine's
    clock gives the gateway's. Prefill and queue data of later attempts is dropped: the front end
    has it from the first one."""
    if output.extra is None:
        reason = output.finish_reason
        return EngineCoreOutput(
            request_id=flight.request_id,
            new_token_ids=output.token_ids,
            finish_reason=None if reason is None else FinishReason(reason),
            stop_reason=output.stop_reason,
            prefill_stats=_prefill_stats(flight, output) if is_first else None,
            trace_headers=flight.trace_headers,
        )
    # Tensors share these bytes, and torch needs them writable.
    full: EngineCoreOutput = _outputs.decode(bytearray(output.extra))
    full.request_id = flight.request_id
    full.trace_headers = flight.trace_headers
    if not is_first:
        full.prefill_stats = None
        full.events = [e for e in full.events or () if e.type is not EngineCoreEventType.QUEUED]
    for event in full.events or ():
        event.timestamp += shift_s
    return full


def scheduled_at(output: EngineCoreOutput) -> float | None:
    """When the core scheduled the request; None if this output does not say."""
    for event in output.events or ():
        if event.type is EngineCoreEventType.SCHEDULED:
            return float(event.timestamp)
    return None


def _prefill_stats(flight: Flight, output: Output[Any]) -> PrefillStats | None:
    if output.cached_tokens is None:
        return None
    stats = PrefillStats()
    stats.set(
        num_prompt_tokens=len(flight.prompt_token_ids),
        num_local_cached_tokens=output.cached_tokens,
        num_external_cached_tokens=0,
    )
    return stats
