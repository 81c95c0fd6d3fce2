"""Admission: which sessions and attempts a host refuses, before its core sees them. Pure.

A vLLM core trusts its front end: it dies of a prompt that is longer than its own limit, and of an
id that it has seen before.
"""

from __future__ import annotations

from collections.abc import Container

from qwenfleet.deployments.wire.frames import (
    MAX_NAME_BYTES,
    PROTOCOL_VERSION,
    EngineDescription,
    Hello,
    Refused,
    Rejected,
    Submit,
    pairs,
    speaks,
)
from qwenfleet.deployments.wire.secret import NONCE_BYTES


def refusal(reason: str) -> Refused:
    """Return a refusal that gateways of every version read."""
    return Refused(reason=reason, protocol=PROTOCOL_VERSION)


def refuse_session(hello: Hello, vllm_version: str) -> Refused | None:
    """Return why this gateway is refused, whatever it knows; None if it may prove the secret."""
    if not speaks(hello.protocol):
        return refusal(
            f"the gateway has protocol version {hello.protocol}, the engine {PROTOCOL_VERSION}; "
            "gateways and engines must have the same version of qwenfleet"
        )
    if not pairs(hello.vllm_version, vllm_version):
        return refusal(f"the gateway has vLLM {hello.vllm_version}, the engine {vllm_version}")
    if len(hello.gateway.encode()) > MAX_NAME_BYTES:
        return refusal(f"the id of the session has more than {MAX_NAME_BYTES} bytes")
    if len(hello.nonce) != NONCE_BYTES:
        return refusal(f"the gateway sent a nonce of {len(hello.nonce)} bytes")
    return None


def refuse_second(hello: Hello, open_sessions: Container[str]) -> Refused | None:
    """Return a refusal if a session of this id is open: whoever knows the secret must not take
    over the requests of another gateway."""
    if hello.gateway in open_sessions:
        return refusal(f"session {hello.gateway} is open already")
    return None


def refuse_attempt(submit: Submit, limits: EngineDescription) -> Rejected | None:
    """Return why no core with these limits can run an attempt; None if it may try."""
    if not submit.prompt_token_ids:
        return Rejected(wire_id=submit.number, reason="the prompt is empty")
    if not 0 <= (submit.dp_rank or 0) < limits.data_parallel_size:
        return Rejected(
            wire_id=submit.number,
            reason=f"rank {submit.dp_rank} is not one of the engine's {limits.data_parallel_size}",
        )
    tokens = len(submit.prompt_token_ids) + len(submit.output_token_ids)
    if tokens >= limits.max_model_len:
        return Rejected(
            wire_id=submit.number,
            reason=f"{tokens} tokens leave no room below the engine's limit of "
            f"{limits.max_model_len} (max_model_len)",
            is_final=False,
        )
    return None
