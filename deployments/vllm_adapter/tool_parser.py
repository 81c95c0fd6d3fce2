"""Tool parsers: the project's reader of tool calls, in the place of vLLM's own.

Registered under vLLM's names, so that a configuration needs no other. A request without tools, or
with `tool_choice: none`, gets its text as the model wrote it, and no parser.

vLLM internals used here (0.32): ToolParser (engine_based_streaming, structural_tag_model),
ToolParserManager.register_module, DelegatingParser.parse_delta, get_function_tools, DeltaMessage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import PrivateAttr
from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.parser.abstract_parser import DelegatingParser
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers import ToolParser, ToolParserManager
from vllm.tool_parsers.utils import get_function_tools

from qwenfleet.deployments.qwen.events import Arguments, CallEnd, CallStart, Event, Text
from qwenfleet.deployments.qwen.tool_dialect import ToolDialect
from qwenfleet.deployments.vllm_adapter import tool_tags

OPENER: Final = "<tool_call>"


class Delta(DeltaMessage):
    """A piece of an answer; `parts` are its text and its calls in their order."""

    _parts: list[DeltaMessage] = PrivateAttr(default_factory=list)

    @property
    def parts(self) -> list[DeltaMessage]:
        return self._parts


class DialectToolParser(ToolParser):
    """Reads one answer, whole or piece by piece. vLLM makes one for each."""

    engine_based_streaming = True  # vLLM keeps no text for it

    def __init__(self, tokenizer: Any, tools: Sequence[Any] | None = None) -> None:
        super().__init__(tokenizer, list(tools or ()))
        self._schemas = _schemas(tools)
        self._dialect: ToolDialect | None = None
        self._index = -1
        """The call that is being read."""
        self._is_single = False
        """Whether only the first call is sent."""
        self.is_cut = False
        """Whether the last call has not ended as it should."""

    def adjust_request(self, request: Any) -> Any:
        """Keep the tags in the text where they are special tokens."""
        if has_tools(request) and OPENER in self.model_tokenizer.all_special_tokens:
            request.skip_special_tokens = False
        return super().adjust_request(request)

    def get_structural_tag(self, request: Any, **settings: Any) -> Any:
        """Return the grammar of the answer, or None. Raises VLLMValidationError for a strict tool
        that no grammar can hold."""
        tag = super().get_structural_tag(request, **settings)
        if tag is not None and self.structural_tag_model is not None:
            tool_tags.refuse_unheld(request, self.structural_tag_model)
        return tag

    def feed(self, text: str, request: Any) -> list[Event]:
        """Return what this piece of the answer decides."""
        if self._dialect is None:
            self._dialect = self._new_dialect(request)
        return self._dialect.feed(text)

    def finish(self) -> list[Event]:
        return [] if self._dialect is None else self._dialect.finish()

    def _new_dialect(self, request: Any) -> ToolDialect:
        self._is_single = request.parallel_tool_calls is False
        schemas = self._schemas if has_tools(request) else {}
        choice = getattr(request.tool_choice, "mode", request.tool_choice)  # of allowed tools
        return ToolDialect(schemas, is_forced=choice not in (None, "auto", "none"))

    def delta(self, events: Sequence[Event]) -> DeltaMessage | None:
        """Return events as vLLM's servers take them; None if there is nothing to send."""
        parts: list[DeltaMessage] = []
        for event in events:
            match event:
                case Text(text):
                    _add_text(parts, text)
                case CallStart(name):
                    self._index += 1
                    parts.append(DeltaMessage(tool_calls=[_begun(self._index, name)]))
                case Arguments(piece):
                    _add_arguments(parts, self._index, piece)
                case CallEnd(is_complete):
                    if not (self._is_single and self._index):  # vLLM leaves the others out
                        self.is_cut = not is_complete
        if len(parts) < 2:
            return parts[0] if parts else None
        return _joined(parts)

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        if not has_tools(request):
            return ExtractedToolCallInformation(
                tools_called=False, tool_calls=[], content=model_output
            )
        dialect = self._new_dialect(request)
        text: list[str] = []
        calls: list[tuple[str, list[str]]] = []
        for event in dialect.feed(model_output) + dialect.finish():
            match event:
                case Text(piece):
                    text.append(piece)
                case CallStart(name):
                    calls.append((name, []))
                case Arguments(piece):
                    calls[-1][1].append(piece)
                case CallEnd(is_complete):
                    self.is_cut = not is_complete
        return ExtractedToolCallInformation(
            tools_called=bool(calls),
            tool_calls=[
                ToolCall(function=FunctionCall(name=name, arguments="".join(pieces)))
                for name, pieces in calls
            ],
            content="".join(text) or None,
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        return self.delta(self.feed(delta_text, request))

    def finish_streaming(self) -> DeltaMessage | None:
        """Return what the end of the answer decides."""
        return self.delta(self.finish())


class QwenToolParser(DialectToolParser):
    """Qwen3-Coder: calls in XML, constrained ones too."""

    structural_tag_model = tool_tags.QWEN3_CODER


class HermesToolParser(DialectToolParser):
    """Qwen3-2507 and others in Hermes' format: constrained calls are JSON."""

    structural_tag_model = tool_tags.HERMES


class DialectAnswers(DelegatingParser):
    """vLLM's parser of whole answers, with the shortest path to a DialectToolParser."""

    @property
    def is_cut(self) -> bool:
        return isinstance(self._tool_parser, DialectToolParser) and self._tool_parser.is_cut

    def _extract_tool_calls(
        self, content: str | None, request: Any, enable_auto_tools: bool = False
    ) -> tuple[list[FunctionCall] | None, str | None]:
        """Return the calls and the text, whatever form the request's `tool_choice` has."""
        parser = self._tool_parser
        if not isinstance(parser, DialectToolParser) or not has_tools(request):
            return super()._extract_tool_calls(content, request, enable_auto_tools)
        found = parser.extract_tool_calls(content or "", request)
        calls = [
            FunctionCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in found.tool_calls
        ]
        text = found.content
        return calls, (text if text and (text.strip() or not calls) else None)

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> DeltaMessage | None:
        parser = self._tool_parser
        if self._reasoning_parser is not None or not isinstance(parser, DialectToolParser):
            return super().parse_delta(
                delta_text, delta_token_ids, request, prompt_token_ids, finished=finished
            )
        events = parser.feed(delta_text, request)
        if finished:
            events += parser.finish()
        return parser.delta(events)


def register() -> None:
    """Put the parsers in the place of vLLM's in this process; `qwen3_xml` stays vLLM's own."""
    tool_tags.register()
    ToolParserManager.register_module("qwen3_coder", module=QwenToolParser)
    ToolParserManager.register_module("hermes", module=HermesToolParser)


def has_tools(request: Any) -> bool:
    """Whether the answer to a request may hold calls."""
    return bool(getattr(request, "tools", None)) and request.tool_choice != "none"


def _schemas(tools: Sequence[Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tool in get_function_tools(tools or ()):
        function: Any = getattr(tool, "function", tool)
        found[function.name] = function.parameters
    return found


def _begun(index: int, name: str) -> DeltaToolCall:
    function = DeltaFunctionCall(name=name, arguments="")  # OpenAI sends it, and SDKs add to it
    return DeltaToolCall(index=index, id=make_tool_call_id(), type="function", function=function)


def _add_text(parts: list[DeltaMessage], text: str) -> None:
    if parts and parts[-1].content is not None:
        parts[-1].content += text
    else:
        parts.append(DeltaMessage(content=text))


def _add_arguments(parts: list[DeltaMessage], index: int, piece: str) -> None:
    calls = parts[-1].tool_calls if parts else []
    if calls and calls[0].index == index and calls[0].function is not None:
        calls[0].function.arguments = (calls[0].function.arguments or "") + piece
        return
    function = DeltaFunctionCall(arguments=piece)
    parts.append(DeltaMessage(tool_calls=[DeltaToolCall(index=index, function=function)]))


def _joined(parts: list[DeltaMessage]) -> Delta:
    text = [part.content for part in parts if part.content is not None]
    calls = [call for part in parts for call in part.tool_calls]
    fields: dict[str, Any] = {"content": "".join(text)} if text else {}
    delta = Delta(**fields, tool_calls=calls) if calls else Delta(**fields)
    delta._parts = parts
    return delta
