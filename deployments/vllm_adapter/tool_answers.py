"""Tool answers: how vLLM's servers report tool calls, where a call was cut.

vLLM reports a cut call as a whole one. Here its arguments stay as the model wrote them, and what
the answer ends with says so: `length` or `stop` instead of `tool_calls`, `max_tokens` or `end_turn`
instead of `tool_use`, an item that is `incomplete`. A message of Anthropic's API holds an object,
which has the arguments that were complete.

vLLM internals used here (0.32): OpenAIServingChat (parser_cls, _make_parser,
chat_completion_full_generator, chat_completion_stream_generator), AnthropicServingMessages
(messages_full_converter, _to_anthropic_stop_reason, _is_json), OpenAIServingResponses (parser,
_make_response_parser, _make_response_output_items, split_delta), SimpleStreamingEventProcessor.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from vllm.entrypoints.anthropic import serving as anthropic
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.responses import serving as responses
from vllm.entrypoints.openai.responses import streaming_events
from vllm.entrypoints.openai.responses.streaming_events import (
    SimpleStreamingEventProcessor,
    _StateHandlers,
    _StateType,
)
from vllm.entrypoints.openai.responses.utils import decode_custom_tool_input_prefix

from qwenfleet.deployments.qwen.json_call import complete_members, is_object
from qwenfleet.deployments.vllm_adapter.tool_parser import (
    Delta,
    DialectAnswers,
    DialectToolParser,
    has_tools,
)

CALLS_END: Final = '"finish_reason":"tool_calls"'


def install(state: Any) -> None:
    """Install what is needed at the servers of one model; `state` is that of its app."""
    for name in ("openai_serving_chat", "anthropic_serving_messages"):
        serving = getattr(state, name, None)
        if serving is not None and _is_ours(serving.parser_cls):
            _ChatAnswers(serving).install()
    serving = getattr(state, "openai_serving_responses", None)
    if serving is not None and _is_ours(serving.parser):
        _install_responses(serving)
    _install_process()


def _is_ours(parser: Any) -> bool:
    own = None if parser is None else parser.tool_parser_cls
    return own is not None and issubclass(own, DialectToolParser)


class _ChatAnswers:
    """The chat answers of one server."""

    def __init__(self, serving: Any) -> None:
        self._serving = serving
        self._make = serving._make_parser
        self._full = serving.chat_completion_full_generator
        self._stream = serving.chat_completion_stream_generator
        self._parsers: dict[int, list[DialectAnswers]] = {}
        """Those of each stream, by the identity of its request."""

    def install(self) -> None:
        serving = self._serving
        serving.parser_cls = type("Answers", (DialectAnswers, serving.parser_cls), {})
        serving._make_parser = self._make_parser
        serving.chat_completion_full_generator = self._whole
        serving.chat_completion_stream_generator = self._streamed
        if isinstance(serving, anthropic.AnthropicServingMessages):
            serving.messages_full_converter = partial(  # type: ignore[method-assign]
                _message, serving.messages_full_converter
            )

    def _make_parser(self, request: Any, *arguments: Any, **keywords: Any) -> Any:
        """Return None for an answer that is text and nothing else."""
        if not has_tools(request) and self._serving.parser_cls.reasoning_parser_cls is None:
            return None
        parser = self._make(request, *arguments, **keywords)
        self._parsers.get(id(request), []).append(parser)
        return parser

    async def _whole(self, request: Any, results: Any, *arguments: Any, **keywords: Any) -> Any:
        ends: dict[int, str | None] = {}

        async def noted() -> AsyncIterator[Any]:
            async for result in results:
                ends.update((output.index, output.finish_reason) for output in result.outputs)
                yield result

        answer = await self._full(request, noted(), *arguments, **keywords)
        for choice in getattr(answer, "choices", ()):
            end, calls = ends.get(choice.index), choice.message.tool_calls
            is_cut = end != "stop" or not calls or not is_object(calls[-1].function.arguments)
            if choice.finish_reason == "tool_calls" and is_cut:
                choice.finish_reason = end or "stop"
        return answer

    def _streamed(
        self, request: Any, *arguments: Any, **keywords: Any
    ) -> AsyncGenerator[str, None]:
        events: AsyncGenerator[str, None] = self._stream(request, *arguments, **keywords)
        return self._restated(request, events) if has_tools(request) else events

    async def _restated(
        self, request: Any, events: AsyncGenerator[str, None]
    ) -> AsyncGenerator[str, None]:
        parsers = self._parsers[id(request)] = []
        try:
            async with aclosing(events):
                async for event in events:
                    if CALLS_END in event and any(parser.is_cut for parser in parsers):
                        event = _restate(event, parsers)
                    yield event
        finally:
            del self._parsers[id(request)]


def _restate(event: str, parsers: list[DialectAnswers]) -> str:
    """Return a stream's event without `tool_calls` for an answer whose call was cut."""
    chunk = json.loads(event.removeprefix("data: "))
    for choice in chunk["choices"]:
        if choice.get("finish_reason") == "tool_calls" and parsers[choice["index"]].is_cut:
            choice["finish_reason"] = "stop"
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _message(convert: Callable[[Any], Any], answer: Any) -> Any:
    """Return a chat answer as a message of Anthropic's API."""
    choice = answer.choices[0]
    functions = [call.function for call in choice.message.tool_calls]
    is_cut = not functions or not is_object(functions[-1].arguments)
    for function in functions:
        if not is_object(function.arguments):
            function.arguments = json.dumps(complete_members(function.arguments))
    message = convert(answer)
    if is_cut and message.stop_reason == "tool_use":
        message.stop_reason, message.stop_sequence = _stop_reason(
            "stop", choice.stop_reason, tool_used=False, tool_complete=False
        )
    return message


# The Responses API.


def _install_responses(serving: Any) -> None:
    make, items = serving._make_response_parser, serving._make_response_output_items
    serving.parser = type("Answers", (DialectAnswers, serving.parser), {})

    def make_parser(request: Any, *arguments: Any, **keywords: Any) -> Any:
        if not has_tools(request) and serving.parser.reasoning_parser_cls is None:
            return None
        return make(request, *arguments, **keywords)

    def make_items(*arguments: Any, parser: Any = None, **keywords: Any) -> list[Any]:
        found: list[Any] = items(*arguments, parser=parser, **keywords)
        for item in found:
            _mark(item)
        if found and getattr(parser, "is_cut", False) and found[-1].type == "custom_tool_call":
            found[-1].input = decode_custom_tool_input_prefix(found[-1].input)
        return found

    serving._make_response_parser = make_parser
    serving._make_response_output_items = make_items


def _mark(item: Any) -> None:
    """Mark a call that was cut."""
    if getattr(item, "type", "") == "function_call" and not is_object(item.arguments):
        item.status = "incomplete"


def split_delta(delta: DeltaMessage) -> list[DeltaMessage]:
    """Return the parts of a delta in their order. A filter may have taken calls out of it, and vLLM
    may have added its reasoning, and what the end of the answer decided."""
    parts = list(delta.parts) if isinstance(delta, Delta) else []
    if not parts and delta.tool_calls and delta.tool_calls[0].id is None:
        parts = [DeltaMessage(tool_calls=delta.tool_calls)]  # they end a call that is open
    text = "".join(part.content or "" for part in parts)
    if not parts or not (delta.content or "").startswith(text):
        return streaming_events.split_delta(delta)
    left = {id(call): call for call in delta.tool_calls}
    found = [] if delta.reasoning is None else [DeltaMessage(reasoning=delta.reasoning)]
    for part in parts:
        has_calls = [left.pop(id(call), None) for call in part.tool_calls]
        if part.content is not None or any(has_calls):
            found.append(part)
    added = (delta.content or "")[len(text) :]
    found += [DeltaMessage(content=added)] if added else []
    return found + [DeltaMessage(tool_calls=[call]) for call in left.values()]


def _done(state: Any) -> list[Any]:
    if state.tool_call_is_custom and not is_object(state.accumulated_text):
        state.accumulated_text = decode_custom_tool_input_prefix(state.accumulated_text)
    events: list[Any] = streaming_events.emit_simple_tool_call_done(state)
    _mark(events[-1].item)
    return events


def _stop_reason(
    finish_reason: str | None, stop_reason: Any, tool_used: bool, tool_complete: bool
) -> tuple[Any, str | None]:
    """Return Anthropic's reason; a call that was cut is not `tool_use`."""
    found: tuple[Any, str | None] = _vllms_stop_reason(
        finish_reason, stop_reason, tool_used and tool_complete, tool_complete
    )
    return found


_vllms_stop_reason: Final = anthropic._to_anthropic_stop_reason


def _install_process() -> None:
    """Replace what vLLM has once for all servers of a process."""
    vars(anthropic)["_to_anthropic_stop_reason"] = _stop_reason
    vars(anthropic)["_is_json"] = is_object
    vars(responses)["split_delta"] = split_delta
    handlers = SimpleStreamingEventProcessor._STATE_HANDLERS
    handlers[_StateType.TOOL_CALL] = _StateHandlers(*handlers[_StateType.TOOL_CALL][:2], _done)
