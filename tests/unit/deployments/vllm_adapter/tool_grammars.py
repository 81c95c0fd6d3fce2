"""Helpers: the grammars of tools, compiled by xgrammar, and calls in both forms."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import xgrammar
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers.structural_tag_registry import get_model_structural_tag
    from vllm.tool_parsers.tool_strict_level import ToolStrictLevel

    from qwenfleet.deployments.vllm_adapter import tool_tags

VOCABULARY = [b"<end>", *(bytes([i]) for i in range(256))]
TOKENIZER = xgrammar.TokenizerInfo(VOCABULARY, stop_token_ids=[0])
COMPILER = xgrammar.GrammarCompiler(TOKENIZER, max_threads=1, cache_enabled=False)

XML = tool_tags.QWEN3_CODER
HERMES = tool_tags.HERMES
Answers = Callable[[str], bool]

EDIT = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "line": {"type": "integer"},
        "mode": {"enum": ["insert", "replace"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["path"],
}
ODD = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "pattern": "(?=x)y"},
        "items": {"type": "array", "items": {"type": "integer"}, "minContains": 2},
    },
    "required": ["title"],
}


def tool(name: str, parameters: Any = None, strict: bool | None = None) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


def request_of(tools: list[dict[str, Any]], choice: Any = "auto") -> ChatCompletionRequest:
    return ChatCompletionRequest(
        model="coder",
        messages=[{"role": "user", "content": "hi"}],
        tools=tools,
        tool_choice=choice,
    )


def tag_of(
    model: str,
    *tools: dict[str, Any],
    choice: Any = "required",
    level: ToolStrictLevel = ToolStrictLevel.AUTO,
) -> Any:
    tool_tags.register()
    request = request_of(list(tools), choice)
    return get_model_structural_tag(
        model, request.tools, request.tool_choice, reasoning=False, strict_level=level
    )


def answers(tag: Any) -> Answers:
    """Whether the tag allows an answer that is this whole text."""
    compiled = COMPILER.compile_structural_tag(tag)

    def allows(text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled)
        return all(matcher.accept_token(byte + 1) for byte in text.encode()) and bool(
            matcher.accept_token(0)
        )

    return allows


def xml(name: str, **arguments: Any) -> str:
    """A call as the chat template writes it."""
    lines = ["<tool_call>", f"<function={name}>"]
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines += [f"<parameter={key}>", text, "</parameter>"]
    return "\n".join([*lines, "</function>", "</tool_call>"])


def hermes(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


CALLS = pytest.mark.parametrize(("model", "call"), [(XML, xml), (HERMES, hermes)])
