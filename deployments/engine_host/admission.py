"""Admission: which sessions and attempts a host refuses, before its core sees them. Pure.

A vLLM core trusts its front end: it dies of a prompt that is longer than its own limit, and of an
id that it has seen before.
"""

from __future__ import annotations

import hmac
from collections.abc import Container

from qwenfleet.deployments.wire.frames import (
    PROTOCOL_VERSION,
    EngineDescription,
    Hello,
    Refused,
    Rejected,
    Submit,
    pairs,
    speaks,
)


def refuse_session(
    hello: Hello, secret: str, open_sessions: Container[str], vllm_version: str
) -> Refused | None:
    """Return why this gateway is refused; None if it is welcome."""
    if not hmac.compare_digest(hello.secret.encode(), secret.encode()):
        return Refused(reason="wrong secret for this engine")
    if not speaks(hello.protocol):
        return Refused(
            reason=f"protocol version {hello.protocol} is incompatible with version "
            f"{PROTOCOL_VERSION}"
        )
    if not pairs(hello.vllm_version, vllm_version):
        return Refused(
            reason=f"the gateway has vLLM {hello.vllm_version}, the engine {vllm_version}"
        )
    if hello.gateway in open_sessions:
        # Whoever knows the secret must not take over the requests of another gateway.
        return Refused(reason=f"session {hello.gateway} is open already")
    return None


def refuse_attempt(key: str, submit: Submit, limits: EngineDescription) -> Rejected | None:
    """Return why no core with these limits can run an attempt; None if it may try."""
    if not submit.prompt_token_ids:
        return Rejected(wire_id=key, reason="the prompt is empty")
    if not 0 <= (submit.dp_rank or 0) < limits.data_parallel_size:
        return Rejected(
            wire_id=key,
            reason=f"rank {submit.dp_rank} is not one of the engine's {limits.data_parallel_size}",
        )
    tokens = len(submit.prompt_token_ids) + len(submit.output_token_ids)
    if tokens >= limits.max_model_len:
        return Rejected(
            wire_id=key,
            reason=f"{tokens} tokens leave no room below the engine's limit of "
            f"{limits.max_model_len} (max_model_len)",
            is_final=False,
        )
    return None
