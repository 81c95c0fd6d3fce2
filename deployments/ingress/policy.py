"""Policy: what a request may ask for. Pure.

vLLM's front end takes any number and any size that its types allow. Work that follows from one
field then stands on a loop that every client shares, and some values end an engine. So a body is
counted before it is parsed, and each field that makes work has a bound in `request_fields.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress.errors import MalformedBody
from qwenfleet.deployments.ingress.field_errors import BeyondContext, WrongValue
from qwenfleet.deployments.ingress.json_survey import survey
from qwenfleet.deployments.ingress.request_fields import FIELDS, OWN, PROMPT_FIELDS
from qwenfleet.deployments.ingress.rules import are_tokens, count, describe, whole

MEDIA: Final = frozenset({"image_url", "video_url", "audio_url", "input_audio", "source"})
"""Fields of a message that hold images and the like, which are not tokenized as text."""
LENGTHS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def read(body: bytes, limits: LimitsConfig) -> dict[str, Any]:
    """Parse a body. Raises MalformedBody, or OutOfBounds if it is too large to be parsed."""
    found = survey(body, limits.body_values, limits.body_depth)
    count("body", found.values, limits.body_values, "body_values", "values")
    count("body", found.depth, limits.body_depth, "body_depth", "levels")
    numbers = found.commas - found.values
    count("body", numbers, limits.token_ids, "token_ids", "numbers")
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(str(error)) from error
    if not isinstance(fields, dict):
        raise MalformedBody(f"it is {describe(fields)}")
    return fields


def check(
    route: str, body: Mapping[str, Any], limits: LimitsConfig, context_tokens: int | None = None
) -> None:
    """Raise a FieldError unless the request is within the limits. `context_tokens` is the longest
    context of the model; None while no engine is known."""
    for field, value in body.items():
        rule = FIELDS.get(field) or OWN.get(field)
        if rule is not None and value is not None:
            rule(field, value, limits)
    _check_sequences(body, limits)
    if context_tokens is not None:
        _check_length(route, body, limits, context_tokens)


def _check_sequences(body: Mapping[str, Any], limits: LimitsConfig) -> None:
    each = whole("n", body.get("n") or 1)
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and not are_tokens(prompt) else 1
    count("n", each * prompts, limits.sequences, "sequences", "answers, with all prompts")
    if body.get("use_beam_search"):
        count("n", each, limits.beam_width, "beam_width", "beams")
        asked = {name: body[name] for name in LENGTHS if body.get(name) is not None}
        if not asked:
            wanted = f"a number up to {limits.beam_tokens} with use_beam_search"
            raise WrongValue("max_tokens", "missing", wanted)
        for name, value in asked.items():  # each route reads another one
            tokens = whole(name, value)
            count(name, tokens, limits.beam_tokens, "beam_tokens", "tokens, with beam search")


def _check_length(
    route: str, body: Mapping[str, Any], limits: LimitsConfig, context_tokens: int
) -> None:
    """Refuse a prompt that cannot fit before anything long is done with it."""
    most = limits.chars_per_token * context_tokens
    asked = {name: body[name] for name in PROMPT_FIELDS if name in body}
    chars = _chars(list(asked.values()), most)
    if chars > most:
        unit = f"characters or more, {limits.chars_per_token} per token"
        raise BeyondContext(next(iter(asked)), chars, unit, context_tokens)
    name = "tokens" if route == "/detokenize" else "prompt"
    tokens = body.get(name)
    is_whole = body.get("truncate_prompt_tokens") is None
    if is_whole and are_tokens(tokens) and len(tokens) > context_tokens:
        raise BeyondContext(name, len(tokens), "token ids", context_tokens)


def _chars(stack: list[Any], most: int) -> int:
    """Return the characters of all strings and names but media, or a number above `most`."""
    chars = 0
    while stack and chars <= most:
        node = stack.pop()
        if isinstance(node, str):
            chars += len(node)
        elif isinstance(node, list):
            if not are_tokens(node):
                stack.extend(node)
        elif isinstance(node, dict):
            chars += sum(map(len, node))
            stack.extend(value for name, value in node.items() if name not in MEDIA)
    return chars
