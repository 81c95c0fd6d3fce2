"""Memory that open requests take of gateways and engines, by the bounds of the configuration. Pure.

The chart refuses memory limits that are below it (`templates/_refusals.tpl`).
"""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.local.memory import GATEWAY_BYTES, PROCESS_BYTES, RAY_BYTES

BYTES_PER_TOKEN: Final = 4
"""Bytes of a body for each token of its prompt. English and code have about four in JSON; a list of
token ids has two and more, which the reserve in GATEWAY_BYTES and the context bound cover."""
TEXT_COPIES: Final = 4
"""A gateway holds a body as bytes, as parsed text, and as the prompt of a chat template, and while
it tokenizes once more."""
TOKEN_BYTES: Final = 48
"""A token in a gateway: 36 in the list of vLLM's front end, 4 in the request's own array, and 4 in
the detokenizer. In an engine's core: 36 in one list and 8 in another (vLLM 0.32, Request)."""

GRAMMAR_PROCESS_BYTES: Final = 60 * 10**6
"""A compiler of grammars: 43 MB resident with Qwen3's vocabulary (30 Nov 2026), and a reserve."""
GRAMMAR_ROOM: Final = 4
"""Memory that a child may use to compile, per byte that the compiled grammar may have."""


def most_tokens(open_body_bytes: int, requests: int, context_tokens: int | None) -> int:
    """Prompt tokens of the open requests of one gateway, at most. `context_tokens` is the longest
    prompt that a model takes; None if it is not known."""
    by_text = open_body_bytes // BYTES_PER_TOKEN
    return by_text if context_tokens is None else min(by_text, requests * context_tokens)


def grammar_bytes(models: int, workers: int, compiled_bytes: int) -> int:
    """Memory of a gateway's grammar compilers: each model has one, with a child for each worker and
    one for a slow grammar."""
    return models * (GRAMMAR_PROCESS_BYTES + (workers + 1) * GRAMMAR_ROOM * compiled_bytes)


def gateway_bytes(open_body_bytes: int, tokens: int, grammars: int) -> int:
    """Memory that a gateway's container needs for bodies of so many bytes, prompts of so many
    tokens and `grammars` bytes of grammar compilers."""
    texts = TEXT_COPIES * open_body_bytes
    return RAY_BYTES + GATEWAY_BYTES + grammars + texts + TOKEN_BYTES * tokens


def engine_bytes(tokens: int) -> int:
    """Memory that the container of an engine on GPUs needs for prompts of so many tokens: one
    engine gets all of them if it is the last one."""
    return RAY_BYTES + PROCESS_BYTES + TOKEN_BYTES * tokens
