"""Parser pair: our parser of tool calls and vLLM's own, for a benchmark that compares them.

vLLM internals used here (0.32): ParserManager.get_parser, Parser.parse_delta, Qwen3EngineToolParser
(registered as qwen3_xml), ChatCompletionRequest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.parser_manager import ParserManager

from qwenfleet.deployments.vllm_adapter import tool_parser
from qwenfleet.deployments.vllm_adapter.tool_parser import DialectAnswers

Feed = Callable[[str, list[int], bool], Any]
"""Takes the text of a token, its ids, and whether it is the last."""
VLLM, OURS = "vLLM 0.32", "qwenfleet"


class ParserPair:
    """Makes either parser for answers to the same request."""

    def __init__(self, model: Path, tools: Mapping[str, Any]) -> None:
        """`model` is a directory with a tokenizer; `tools` maps names to their parameters."""
        tool_parser.register()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self._tools = [
            {"type": "function", "function": {"name": name, "parameters": parameters}}
            for name, parameters in tools.items()
        ]
        vllms = ParserManager.get_parser("qwen3_xml", None, True)
        ours = ParserManager.get_parser("qwen3_coder", None, True)
        assert vllms is not None
        assert ours is not None
        self._classes: dict[str, Any] = {
            VLLM: vllms,
            OURS: type("Answers", (DialectAnswers, ours), {}),
        }

    def feed(self, name: str, *, has_tools: bool) -> Feed:
        """Return a new parser. Without tools a gateway of ours uses none."""
        message = [{"role": "user", "content": "x"}]
        fields: dict[str, Any] = {"tools": self._tools} if has_tools else {}
        request = ChatCompletionRequest(messages=message, **fields)
        if not has_tools and name == OURS:
            return lambda text, ids, finished: DeltaMessage(content=text)
        parser = self._classes[name](self.tokenizer, request.tools)

        def feed(text: str, ids: list[int], finished: bool) -> Any:
            return parser.parse_delta(text, ids, request, [1], finished=finished)

        return feed
