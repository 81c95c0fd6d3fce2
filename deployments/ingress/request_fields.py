"""The fields of vLLM's request models (0.32), each with a rule or known to be harmless.

A name means the same on every route that has it. test_policy_fields.py fails if a model of the
installed vLLM has a field that is in neither list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress.field_errors import NotTaken
from qwenfleet.deployments.ingress.fim_fields import fim
from qwenfleet.deployments.ingress.rules import (
    INT32_MAX,
    INT64_MAX,
    Rule,
    are_tokens,
    between,
    both,
    each_of,
    finite,
    inner_json,
    items,
    of,
    refused,
    text,
    texts,
    tree,
    up_to,
    within,
)

RESERVED: Final = frozenset(
    {
        "kv_transfer_params",
        "ec_transfer_params",
        "kv_cache_report_mode",
        "qwenfleet_received_tokens",
        "qwenfleet_prompt_tokens",
    }
)
"""Keys of vLLM's `extra_args` that a core acts on (vLLM 0.32 v1/request.py), and those of a
resume. Clients reach `extra_args` through `vllm_xargs`."""
PROMPT_FIELDS: Final = (
    "prompt",
    "suffix",
    "fim",
    "messages",
    "system",
    "input",
    "instructions",
    "previous_input_messages",
    "documents",
    "tools",
)
"""Fields whose text goes into the prompt."""
COUNT: Final = between(-1, INT32_MAX)
NAME: Final = text("id_chars")
OPTIONS: Final = tree("option_values", "option_chars")
SCHEMA: Final = both(tree("schema_values", "schema_chars"), inner_json)
FLEETS_OWN: Final = "only the fleet itself may tell its engines this"


def _options_of_vllm(field: str, value: Any, limits: LimitsConfig) -> None:
    OPTIONS(field, value, limits)
    for name in RESERVED & set(value if isinstance(value, dict) else ()):
        raise NotTaken(f"{field}.{name}", FLEETS_OWN)


def _prompt(field: str, value: Any, limits: LimitsConfig) -> None:
    """One text or list of token ids, or a list of either."""
    if isinstance(value, list) and not are_tokens(value):
        items("prompts")(field, value, limits)


def _message(field: str, value: Any, limits: LimitsConfig) -> None:
    """vLLM parses the arguments of earlier tool calls, which are JSON in a string."""
    if not isinstance(value, dict):
        return
    inner_json(f"{field}.arguments", value.get("arguments"), limits)  # of the Responses API
    calls = value.get("tool_calls")
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            path = f"{field}.tool_calls[{index}].function.arguments"
            inner_json(path, function.get("arguments"), limits)


def _conversation(setting: str) -> Rule:
    """Allow a list; where a text stands instead, vLLM says whether it may."""
    entries = each_of(setting, _message)

    def rule(field: str, value: Any, limits: LimitsConfig) -> None:
        if not isinstance(value, str):
            entries(field, value, limits)

    return rule


FIELDS: Final[Mapping[str, Rule]] = {
    # What is asked.
    "prompt": _prompt,
    "messages": _conversation("messages"),
    "input": _conversation("input_items"),
    "previous_input_messages": _conversation("input_items"),
    "documents": items("messages"),
    "tools": each_of("tools", SCHEMA),
    "tool_choice": OPTIONS,
    "chat_template": text("schema_chars"),
    "chat_template_kwargs": OPTIONS,
    "media_io_kwargs": OPTIONS,
    "mm_processor_kwargs": OPTIONS,
    # How many answers, and how long.
    "n": up_to("n"),
    "max_tokens": COUNT,
    "max_completion_tokens": COUNT,
    "max_output_tokens": COUNT,
    "max_tool_calls": COUNT,
    "min_tokens": COUNT,
    "truncate_prompt_tokens": COUNT,
    "thinking_token_budget": COUNT,
    "thinking": OPTIONS,
    "reasoning": OPTIONS,
    "stream_interval": COUNT,
    "stream_options": of(),
    "routed_experts_prompt_start": COUNT,
    # Sampling.
    "seed": between(-INT64_MAX - 1, INT64_MAX),
    "top_k": COUNT,
    "top_p": finite,
    "min_p": finite,
    "temperature": finite,
    "frequency_penalty": finite,
    "presence_penalty": finite,
    "repetition_penalty": finite,
    "length_penalty": within(-10, 10),
    "logprobs": up_to("logprobs"),
    "top_logprobs": up_to("logprobs"),
    "prompt_logprobs": up_to("logprobs"),
    "logprob_token_ids": items("logprobs"),
    "logit_bias": items("logit_bias", dict),
    "allowed_token_ids": items("allowed_token_ids"),
    "stop_token_ids": items("stop_token_ids"),
    "stop": texts("stop_chars"),
    "stop_sequences": texts("stop_chars"),
    "bad_words": both(items("bad_words"), texts("bad_word_chars")),
    "repetition_detection": of(
        max_pattern_size=up_to("repetition_pattern"),
        min_pattern_size=up_to("repetition_pattern"),
        min_count=COUNT,
    ),
    # The form of an answer.
    "response_format": both(of(), SCHEMA),
    "text": both(of(), SCHEMA),
    "output_config": both(of(), SCHEMA),
    "structured_outputs": of(
        json=SCHEMA,
        structural_tag=SCHEMA,
        grammar=text("schema_chars"),
        regex=text("regex_chars"),
        whitespace_pattern=text("regex_chars"),
        choice=both(items("schema_values"), texts("schema_chars")),
    ),
    "include": items("option_values"),
    # Names, and what else a client attaches.
    "user": NAME,
    "request_id": NAME,
    "session_id": NAME,
    "previous_response_id": NAME,
    "prompt_cache_key": NAME,
    "cache_salt": NAME,
    "metadata": OPTIONS,
    "priority": lambda field, value, limits: between(limits.lowest_priority, INT32_MAX)(
        field, value, limits
    ),
    "vllm_xargs": _options_of_vllm,
    "kv_transfer_params": refused(FLEETS_OWN),
    "ec_transfer_params": refused(FLEETS_OWN),
    "prompt_embeds": refused("the models take text or token ids"),
}
"""Fields of every route: a name means the same wherever vLLM has it."""
OWN: Final[Mapping[str, Rule]] = {"fim": fim}
"""Fields of ours, which vLLM does not have."""
HARMLESS: Final = frozenset(
    {
        # Counted as text: `PROMPT_FIELDS`.
        "suffix",
        "system",
        "instructions",
        # Counted as numbers, and against the context.
        "tokens",
        # One of a few values, which the gateway or vLLM checks.
        "model",
        "reasoning_effort",
        "truncation_side",
        "truncation",
        "service_tier",
        "mm_payload",
        # Yes or no.
        "add_generation_prompt",
        "add_special_tokens",
        "background",
        "continue_final_message",
        "echo",
        "enable_response_messages",
        "ignore_eos",
        "include_reasoning",
        "include_stop_str_in_output",
        "parallel_tool_calls",
        "return_mm_kwargs",
        "return_prompt_text",
        "return_token_ids",
        "return_token_offsets",
        "return_token_strs",
        "return_tokens_as_token_ids",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "store",
        "stream",
        "use_beam_search",
        "watermarking",
    }
)
"""Fields that make no more work with one value than with another, or whose work others bound."""
