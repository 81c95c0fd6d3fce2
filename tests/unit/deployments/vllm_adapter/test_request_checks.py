"""Requests that would end a vLLM core are refused before it, each with a sentence."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from vllm.config import VllmConfig
    from vllm.exceptions import VLLMValidationError
    from vllm.lora.request import LoRARequest
    from vllm.pooling_params import PoolingParams
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    from qwenfleet.deployments.vllm_adapter.request_checks import check, check_sizes, guard

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.models.sources import locate
from qwenfleet.deployments.ingress import exchange as exchange_module
from qwenfleet.deployments.vllm_adapter.engine_args import engine_args
from qwenfleet.deployments.wire.frames import Submit
from qwenfleet.deployments.wire.tokens import TokenIds

Spoil = Callable[[EngineCoreRequest, Submit], object]


def of_request(name: str, value: Any) -> Spoil:
    return lambda request, submit: setattr(request, name, value)


def of_params(name: str, value: Any) -> Spoil:
    return lambda request, submit: setattr(request.sampling_params, name, value)


@pytest.fixture(scope="module")
def config() -> VllmConfig:
    model = ModelConfig(id="tiny", source="tiny-qwen3-moe", max_model_len=256, kv_cache_gib=0.1)
    return engine_args(model, locate(model.source)).create_engine_config()


def a_request() -> tuple[EngineCoreRequest, Submit]:
    request = EngineCoreRequest(
        request_id="r",
        prompt_token_ids=None,
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=4),
        pooling_params=None,
        arrival_time=1.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return request, Submit("r", 0, TokenIds([0, 1, 2]), b"", output_token_ids=TokenIds([3]))


def test_an_ordinary_request_passes(config: VllmConfig) -> None:
    request, submit = a_request()
    last = config.model_config.get_vocab_size() - 1
    submit.prompt_token_ids.append(last)
    assert check(request, submit, config) is request.sampling_params


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda r, s: s.prompt_token_ids.append(10**6), "token 1000000 is outside"),
        (lambda r, s: s.prompt_token_ids.append(2**32 - 1), "token 4294967295 is outside"),
        (lambda r, s: s.output_token_ids.append(2**32 - 1), "outside the model's vocabulary"),
        (of_params("logit_bias", {10**6: 1.0}), "in logit_bias contain out-of-vocab"),
        (of_params("allowed_token_ids", [10**6]), "allowed_token_ids contains out-of-vocab"),
        (of_params("allowed_token_ids", []), "not None and empty"),
        (of_params("stop_token_ids", [-5]), "in stop_token_ids contain out-of-vocab"),
        (of_params("logprobs", 10**6), "greater than max allowed"),
        (of_params("prompt_logprobs", 10**6), "greater than max allowed"),
        (of_request("sampling_params", None), "only text generation works"),
        (of_request("pooling_params", PoolingParams()), "only text generation works"),
        (of_request("prompt_embeds", torch.zeros(1)), "only token ids work"),
        (of_request("mm_features", [object()]), "the model takes text only"),
        (of_request("lora_request", LoRARequest("a", 1, "/a")), "names a LoRA adapter"),
    ],
)
def test_what_a_core_would_die_of_is_refused_with_a_sentence(
    config: VllmConfig, spoil: Spoil, reason: str
) -> None:
    request, submit = a_request()
    spoil(request, submit)
    with pytest.raises(ValueError, match=reason):
        check(request, submit, config)


def with_bad_words(*words: list[int]) -> SamplingParams:
    params = SamplingParams()
    params._bad_words_token_ids = list(words)
    return params


TOO_LARGE = [
    (SamplingParams(logit_bias=dict.fromkeys(range(1025), 1.0)), "1025 logit_bias.* takes 1024"),
    (SamplingParams(allowed_token_ids=[1] * 1025), "1025 allowed_token_ids.* takes 1024"),
    (SamplingParams(min_tokens=1, stop_token_ids=list(range(129))), "129 stop_token_ids"),
    (with_bad_words(*[[1]] * 129), "129 bad_words.* takes 128"),
    (with_bad_words([1] * 1000, [2] * 25), "1025 tokens of bad_words.* takes 1024"),
    (SamplingParams(logprob_token_ids=[1] * 129), "129 logprob_token_ids.* takes 128"),
]
IN_SIZE = [
    SamplingParams(logit_bias=dict.fromkeys(range(1024), 1.0), allowed_token_ids=[1] * 1024),
    SamplingParams(min_tokens=1, stop_token_ids=list(range(128))),
    SamplingParams(stop_token_ids=list(range(129))),
    with_bad_words([1] * 1000, [2] * 24),
]


@pytest.mark.parametrize(("params", "reason"), TOO_LARGE)
def test_what_does_not_fit_into_the_runners_buffers_is_refused(
    params: SamplingParams, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check_sizes(params)


@pytest.mark.parametrize("params", IN_SIZE)
def test_what_fits_into_the_runners_buffers_passes(params: SamplingParams) -> None:
    check_sizes(params)


def test_an_engine_refuses_them_as_well(config: VllmConfig) -> None:
    request, submit = a_request()
    request.sampling_params = with_bad_words([1] * 1025)
    with pytest.raises(ValueError, match="tokens of bad_words"):
        check(request, submit, config)


class Inputs:
    """vLLM's input processor, as far as the checks see it."""

    def process_inputs(self, params: SamplingParams) -> EngineCoreRequest:
        request, _ = a_request()
        request.prompt_token_ids = [1] * 10
        request.sampling_params = params
        return request


async def test_log_probabilities_are_counted_over_all_prompts_and_answers_of_a_request(
    new_exchange: Any,
) -> None:
    inputs: Any = Inputs()
    guard(inputs, LimitsConfig(prompt_logprob_values=100))
    params = SamplingParams(prompt_logprobs=2, n=2)  # 10 tokens, 3 values each, twice

    def send(exchange: Any) -> None:
        (context := copy_context()).run(exchange_module._current.set, exchange)
        context.run(inputs.process_inputs, params)

    first = new_exchange()
    send(first)
    with pytest.raises(VLLMValidationError, match="120 values, above the limit of 100"):
        send(first)
    send(new_exchange())
