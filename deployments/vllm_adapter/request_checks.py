"""Request checks: what a vLLM core takes on trust from its front end, checked again before it.

A token or parameter out of bounds raises inside a step, which ends the core and every stream on it
(vLLM 0.32). A gateway has checked the same against its own configuration, which may differ.

vLLM internals used here (0.32): EngineCoreRequest, SamplingParams.verify, VllmConfig.
"""

from __future__ import annotations

import numpy as np
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

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
    return params
