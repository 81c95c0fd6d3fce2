"""A vLLM plugin that lets a core continue after output tokens which another core made.

vLLM loads it as a general plugin in every core and worker process (entry point `qwenfleet_resume`).
A request that carries RECEIVED_TOKENS in its `extra_args` then starts in the state that a preempted
request of vLLM has when it comes back: those tokens are output, not prompt, so `max_tokens`,
`min_tokens`, penalties, bad words, repetition detection and grammars count them. Such a request is
its original in everything else.

A prompt comes packed, as PROMPT_TOKENS, and becomes the list that vLLM wants here, in the thread
that reads requests: in a host, a list of a million ids would stop the event loop.

What of vLLM 0.32 is patched, and why (the tests of this module fail when one of these, or what they
rely on, changes):

- `Request.from_engine_core_request`: makes the prompt's list before it, and appends the tokens as
  output after it, which also hashes their blocks.
  It takes no prefill statistics, for which the scheduler asserts that a new request has no more
  cached tokens than its prompt: it would die where the output of an earlier attempt is cached.
  Prompt logprobs are not asked for again; the first output of the first attempt had them. The V2
  runner needs no more than this: the scheduler gives it all tokens of the request as `prefill`.
- `StructuredOutputManager._create_grammar`: advances the fresh grammar by the tokens, after the
  reasoning gate of `accept_tokens`. A rejection is handled like a grammar that does not compile:
  the scheduler ends this one request with an error.
- `CachedRequestState.__post_init__` (V1 runner): the worker's copy of the request starts with the
  tokens too, which vLLM only expects of requests that it has preempted itself.
- `InputBatch.update_async_output_token_ids` (V1 runner), which `GPUModelRunner._sample` calls just
  before each sampling: sets the generator of each seeded request by (seed, number of output
  tokens). V1's generators otherwise carry their state from token to token, which no other core has;
  V2 draws by (seed, position) anyway. So the same seed draws other tokens than in a plain vLLM with
  the V1 runner.

Not exact: a seeded request with speculative decoding, where one sampling makes several tokens; and,
on V1, a `thinking_token_budget` cut inside a forced end of reasoning of more than one token, which
vLLM does not find again after its own preemptions either.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any, Final

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from qwenfleet.deployments.vllm_adapter import grammar_plugin, page_cache
from qwenfleet.deployments.wire.tokens import TokenIds

PLUGIN: Final = "qwenfleet_resume"
RECEIVED_TOKENS: Final = "qwenfleet_received_tokens"
PROMPT_TOKENS: Final = "qwenfleet_prompt_tokens"
CARRIED: Final = frozenset({RECEIVED_TOKENS, PROMPT_TOKENS})
"""Keys in `SamplingParams.extra_args`, whose values are packed `TokenIds`. Clients may set
extra_args (`vllm_xargs`), so a host removes these keys from what comes over HTTP."""


class ReceivedTokens(list[int]):
    """Output tokens of earlier attempts; a dump of the core's state shows how many, not which."""

    def __repr__(self) -> str:
        return f"<{len(self)} tokens>"


class PositionedGenerator(torch.Generator):  # type: ignore[misc]  # mypy does not read torch
    """A request's generator, seeded again for each of its tokens."""

    request_seed: int

    def move_to(self, position: int) -> None:
        """Make the next draws those of this output token, whatever was drawn before."""
        digest = hashlib.blake2b(f"{self.request_seed}:{position}".encode(), digest_size=8)
        self.manual_seed(int.from_bytes(digest.digest()))

    # V1 turns the generator of a partial prefill back by an offset after sampling. There is nothing
    # to turn back here, and torch's generators have no offset on CPU: they raise, which ends the
    # core (seen with a plain vLLM 0.32 and a seeded prompt of two prefill chunks).

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        pass


def register() -> None:
    """The entry point; vLLM may call it more than once in a process."""
    page_cache.register()
    grammar_plugin.register()
    _wrap(Request, "from_engine_core_request", _append_received)
    _wrap(StructuredOutputManager, "_create_grammar", _advance_grammar)
    _wrap(CachedRequestState, "__post_init__", _prepare_state)
    _wrap(InputBatch, "update_async_output_token_ids", _move_generators)


def received_tokens(params: SamplingParams | None) -> ReceivedTokens | None:
    """The tokens that a request with these parameters continues after; None if it is new."""
    if params is None or not params.extra_args:
        return None
    tokens = params.extra_args.get(RECEIVED_TOKENS)
    if isinstance(tokens, bytes):
        tokens = TokenIds.unpack(tokens)
    return ReceivedTokens(tokens) if tokens else None


def _take_prompt(request: EngineCoreRequest) -> None:
    """Make the prompt's list of a request that carries it packed."""
    params = request.sampling_params
    extra = dict((params.extra_args if params is not None else None) or {})
    packed = extra.pop(PROMPT_TOKENS, None)
    if params is not None and packed is not None:
        request.prompt_token_ids = TokenIds.unpack(packed).tolist()
        params.extra_args = extra or None


def _wrap(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    if not hasattr(original, PLUGIN):
        wrapper = functools.wraps(original)(make(original))
        setattr(wrapper, PLUGIN, True)
        is_bound = inspect.ismethod(original)  # a classmethod, which getattr has bound
        setattr(owner, name, staticmethod(wrapper) if is_bound else wrapper)


def _append_received(original: Callable[..., Request]) -> Callable[..., Request]:
    def from_engine_core_request(request: EngineCoreRequest, block_hasher: Any) -> Request:
        _take_prompt(request)
        params = request.sampling_params
        tokens = received_tokens(params)
        if params is None or tokens is None:
            return original(request, block_hasher)
        params.extra_args = {**(params.extra_args or {}), RECEIVED_TOKENS: tokens}
        params.prompt_logprobs = None
        resumed = original(request, block_hasher)
        resumed.append_output_token_ids(tokens)
        resumed.prefill_stats = None  # a core that has its output cached asserts against these
        return resumed

    return from_engine_core_request


def _advance_grammar(original: Callable[..., StructuredOutputGrammar]) -> Callable[..., Any]:
    def _create_grammar(
        manager: StructuredOutputManager, request: Request
    ) -> StructuredOutputGrammar:
        grammar = original(manager, request)
        tokens = received_tokens(request.sampling_params)
        structured = request.structured_output_request
        if tokens is None or structured is None:
            return grammar
        # As in accept_tokens, which finds no grammar in the request before this returns.
        start, _ = manager._get_constraint_bounds(request, tokens, spec_tokens_committed=True)
        if start <= len(tokens):
            structured.reasoning_ended = True
            if not grammar.accept_tokens(request.request_id, tokens[start:]):
                raise ValueError(f"the grammar of {request.request_id} rejects the tokens so far")
        return grammar

    return _create_grammar


def _prepare_state(original: Callable[..., None]) -> Callable[..., None]:
    def __post_init__(state: CachedRequestState) -> None:
        original(state)
        params = state.sampling_params
        tokens = received_tokens(params)
        if tokens is not None:
            state.output_token_ids = list(tokens)
        if params is not None and state.generator is not None and params.seed is not None:
            state.generator = PositionedGenerator(state.generator.device)
            state.generator.request_seed = params.seed

    return __post_init__


def _move_generators(original: Callable[..., None]) -> Callable[..., None]:
    def update_async_output_token_ids(batch: InputBatch) -> None:
        original(batch)
        for index, generator in batch.generators.items():
            generator.move_to(len(batch.req_output_token_ids[index] or ()))

    return update_async_output_token_ids
