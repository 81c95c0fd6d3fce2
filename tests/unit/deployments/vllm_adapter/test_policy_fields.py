"""Holds the policy against the request models and the runner of the installed vLLM."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import vllm
    from vllm.entrypoints.anthropic.protocol import (
        AnthropicCountTokensRequest,
        AnthropicMessagesRequest,
    )
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import (
        DetokenizeRequest,
        TokenizeChatRequest,
        TokenizeCompletionRequest,
    )
    from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams

    from qwenfleet.deployments.vllm_adapter.resume_plugin import CARRIED

from qwenfleet.cluster.config import limits
from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress import policy, request_fields
from qwenfleet.deployments.ingress.field_errors import FieldError
from qwenfleet.deployments.ingress.http_app import MODEL_ROUTES
from qwenfleet.deployments.ingress.request_headers import DROPPED, NAMES

MODELS: dict[str, tuple[Any, ...]] = {
    "/v1/chat/completions": (ChatCompletionRequest,),
    "/v1/completions": (CompletionRequest,),
    "/infill": (),  # becomes a completion, which is held against the same rules
    "/v1/responses": (ResponsesRequest,),
    "/v1/messages": (AnthropicMessagesRequest,),
    "/v1/messages/count_tokens": (AnthropicCountTokensRequest,),
    "/tokenize": (TokenizeCompletionRequest, TokenizeChatRequest),
    "/detokenize": (DetokenizeRequest,),
}
ROOT = Path(vllm.__file__).parent


def names_of(model: Any) -> set[str]:
    return {
        name for field, info in model.model_fields.items() for name in (field, info.alias) if name
    }


def source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def constant(path: str, name: str) -> int:
    """Return a number that a file of vLLM assigns."""
    found = re.search(rf"^ *{name}(?:: int)? = (\d+)$", source(path), re.MULTILINE)
    assert found is not None, f"{path} has no {name}"
    return int(found[1])


def test_every_route_with_a_body_is_held_against_its_models() -> None:
    assert set(MODELS) == MODEL_ROUTES


@pytest.mark.parametrize("route", MODELS)
def test_every_field_of_vllms_requests_is_bounded_or_known_to_be_harmless(route: str) -> None:
    known = set(request_fields.FIELDS) | request_fields.HARMLESS
    for model in MODELS[route]:
        assert names_of(model) - known == set()


def test_no_field_is_listed_that_vllm_does_not_have() -> None:
    known = set[str]().union(*(names_of(model) for models in MODELS.values() for model in models))
    assert set(request_fields.FIELDS) | request_fields.HARMLESS == known
    assert not set(request_fields.FIELDS) & request_fields.HARMLESS


@pytest.mark.parametrize(
    ("field", "params", "harmless"),
    [
        (
            "structured_outputs",
            StructuredOutputsParams,
            {
                "json_object",
                "disable_any_whitespace",
                "disable_additional_properties",
                "_backend",
                "_backend_was_auto",
            },
        ),
        ("repetition_detection", RepetitionDetectionParams, set()),
    ],
)
def test_every_field_inside_of_these_is_bounded_too(
    field: str, params: Any, harmless: set[str]
) -> None:
    large: Any = ["x" * 10**6]
    for each in fields_of(params):
        if each.name not in harmless:
            with pytest.raises(FieldError, match=rf"{field}\.{each.name}"):
                policy.check("/", {field: {each.name: large}}, LimitsConfig())


def test_text_of_prompts_is_in_fields_that_vllm_has() -> None:
    known = set(request_fields.FIELDS) | request_fields.HARMLESS
    assert set(request_fields.PROMPT_FIELDS) <= known | set(request_fields.OWN)
    assert not known & set(request_fields.OWN)


def test_keys_that_a_core_reads_from_extra_args_are_reserved() -> None:
    read = re.findall(r'extra_args\.get\(\s*"(\w+)"', source("v1/request.py"))
    assert {*read, *CARRIED} == request_fields.RESERVED


def test_headers_that_vllm_reads_are_dropped_or_checked() -> None:
    read: set[str] = set()
    for path in ("generate/base/serving.py", "serve/engine/serving.py"):
        text = source(f"entrypoints/{path}")
        read |= set(re.findall(r'headers\.get\("([^"]+)"\)', text))
        read |= set(re.findall(r'^\w+_HEADER = "([^"]+)"', text, re.MULTILINE))
    for path in ("chat_completion", "completion"):
        text = source(f"entrypoints/openai/{path}/api_router.py")
        read |= set(re.findall(r'^\w+_HEADER_LABEL = "([^"]+)"', text, re.MULTILINE))
    assert {name.lower().encode() for name in read} <= DROPPED | NAMES
    assert len(read) == 5


@pytest.mark.parametrize(
    ("ours", "path", "name"),
    [
        ("RUNNER_LOGIT_BIAS", "v1/worker/gpu/sample/logit_bias.py", "MAX_NUM_LOGIT_BIAS_TOKENS"),
        (
            "RUNNER_ALLOWED_TOKEN_IDS",
            "v1/worker/gpu/sample/logit_bias.py",
            "MAX_NUM_ALLOWED_TOKEN_IDS",
        ),
        ("RUNNER_STOP_TOKEN_IDS", "v1/worker/gpu/sample/logit_bias.py", "MAX_NUM_STOP_TOKEN_IDS"),
        ("RUNNER_BAD_WORDS", "envs.py", "VLLM_MAX_NUM_BAD_WORDS"),
        ("RUNNER_BAD_WORD_TOKENS", "envs.py", "VLLM_MAX_BAD_WORDS_TOTAL_TOKENS"),
        ("RUNNER_LOGPROB_TOKEN_IDS", "sampling_params.py", "MAX_LOGPROB_TOKEN_IDS"),
    ],
)
def test_bounds_are_those_of_the_installed_runner(ours: str, path: str, name: str) -> None:
    assert getattr(limits, ours) == constant(path, name)


def test_the_runner_raises_for_nothing_else_that_a_request_brings() -> None:
    """A new buffer of a fixed size needs a bound. No model of a fleet pools."""
    raising = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "v1/worker/gpu").rglob("*.py")
        if re.search(r"def add_request\b(?:(?!\n    def ).)*?\braise ", file.read_text(), re.DOTALL)
    }
    places = ("sample/bad_words", "sample/logit_bias", "sample/logprob", "pool/pooling_runner")
    assert raising == {f"v1/worker/gpu/{place}.py" for place in places}
