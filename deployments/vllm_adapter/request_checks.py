"""Request checks: what a vLLM core takes on trust from its front end, checked again before it.

A token or parameter out of bounds raises inside a step, which ends the core and every stream on it
(vLLM 0.32). A gateway has checked the same against its own configuration, which may differ.

vLLM internals used here (0.32): EngineCoreRequest, SamplingParams.verify, VllmConfig,
InputProcessor.process_inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor

from qwenfleet.cluster.config import limits as bounds
from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress.exchange import current_exchange
from qwenfleet.deployments.wire.frames import Submit


def check(request: EngineCoreRequest, submit: Submit, config: VllmConfig) -> SamplingParams:
    """Return the request's parameters. Raises ValueError, with a sentence, for a request that could
    end a core of this configuration."""
    params = request.sampling_params
    if params is None or request.pooling_params is not None:
        raise ValueError("the request has no sampling parameters: only text generation works")
    model = config.model_config
    if request.prompt_embeds is not None:
        raise ValueError("the request has prompt embeddings: only token ids work")
    if request.mm_features and not model.is_multimodal_model:
        raise ValueError("the request has images or other media: the model takes text only")
    if request.lora_request is not None and config.lora_config is None:
        raise ValueError("the request names a LoRA adapter: the engine has none")
    vocabulary = model.get_vocab_size()
    for tokens in (submit.prompt_token_ids, submit.output_token_ids):
        ids = np.asarray(tokens)  # no copy, and 20 times as fast as Python's max
        if ids.size and not (ids.min() >= 0 and ids.max() < vocabulary):
            outside = next(token for token in tokens if not 0 <= token < vocabulary)
            raise ValueError(f"token {outside} is outside the model's vocabulary of {vocabulary}")
    try:  # without grammars, which need the tokenizer, and fail alone in the core
        params.verify(model, config.speculative_config, None, None)
    except VLLMValidationError as error:  # not a ValueError
        raise ValueError(str(error)) from error
    check_sizes(params)
    return params


def check_sizes(params: SamplingParams) -> None:
    """Raise ValueError, with a sentence, for parameters larger than the buffers of vLLM's runner on
    GPUs, which knows them only in a step."""
    stops = len(params.all_stop_token_ids) if params.min_tokens > 0 else 0
    words = params.bad_words_token_ids or ()
    for field, count, most in (
        ("logit_bias", len(params.logit_bias or ()), bounds.RUNNER_LOGIT_BIAS),
        (
            "allowed_token_ids",
            len(params.allowed_token_ids or ()),
            bounds.RUNNER_ALLOWED_TOKEN_IDS,
        ),
        ("stop_token_ids with min_tokens", stops, bounds.RUNNER_STOP_TOKEN_IDS),
        ("bad_words", len(words), bounds.RUNNER_BAD_WORDS),
        ("tokens of bad_words", sum(map(len, words)), bounds.RUNNER_BAD_WORD_TOKENS),
        (
            "logprob_token_ids",
            len(params.logprob_token_ids or ()),
            bounds.RUNNER_LOGPROB_TOKEN_IDS,
        ),
    ):
        if count > most:
            raise ValueError(
                f"the request has {count} {field}, and an engine takes {most}. Send fewer."
            )


def guard(inputs: InputProcessor, limits: LimitsConfig) -> None:
    """Make a front end refuse, once it has tokenized a request, what is too large for an engine."""
    process = inputs.process_inputs

    def process_inputs(*arguments: Any, **keywords: Any) -> EngineCoreRequest:
        request: EngineCoreRequest = process(*arguments, **keywords)
        params = request.sampling_params
        if params is not None:
            try:
                check_sizes(params)
                _check_prompt_logprobs(params, len(request.prompt_token_ids or ()), limits)
            except ValueError as error:
                raise VLLMValidationError(str(error)) from error
        return request

    inputs.process_inputs = process_inputs  # type: ignore[method-assign]


def _check_prompt_logprobs(params: SamplingParams, tokens: int, limits: LimitsConfig) -> None:
    """Count those of all prompts and answers of a request: vLLM prepares one prompt at a time."""
    if params.prompt_logprobs is None:
        return
    values, most = tokens * (params.prompt_logprobs + 1) * params.n, limits.prompt_logprob_values
    exchange = current_exchange()
    if exchange is not None:
        values = exchange.prompt_logprobs = exchange.prompt_logprobs + values
    if values > most:
        raise ValueError(
            f"prompt_logprobs {params.prompt_logprobs} of all prompts and answers are {values} "
            f"values, above the limit of {most}. Send shorter prompts or fewer, or ask the "
            "operator to change gateway.limits.prompt_logprob_values."
        )
