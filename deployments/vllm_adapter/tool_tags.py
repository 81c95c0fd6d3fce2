"""Tool tags: the grammar of an answer that may or must call tools, for the project's tool parsers.

vLLM asks for one by the name in a parser's `structural_tag_model` if a call is required or named,
if a tool is strict, or if the operator's `tool_strict_level` says so. Each call is one of the
request's tools in the form of the chat template. A strict tool's arguments follow its schema, as
far as `what_holds` has it, in the schema's order; another's are any. Calls stand on lines of their
own, and values in JSON have two blanks at most between their parts: without a bound, models have
filled answers with them.

What the grammars do not hold: a value in XML cannot contain `</parameter>`, and a wildcard of its
pattern is never `<`. An answer that may call tools is free text up to `<function=` or, in Hermes'
format, `<tool_call>`.

vLLM internals used here (0.32): register_vllm_structural_tag, get_structural_tag_tools, the
arguments of its builders, limit_to_single_tool_call's list of formats, VLLMValidationError.
xgrammar 0.2.8: the formats of its structural tags, `max_whitespace_cnt`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from openai.types.responses import FunctionTool
from vllm.exceptions import VLLMValidationError
from vllm.tool_parsers.structural_tag_registry import (
    get_structural_tag_tools,
    register_vllm_structural_tag,
)
from xgrammar import StructuralTag
from xgrammar.structural_tag import (
    AnyTextFormat,
    ConstStringFormat,
    Format,
    JSONSchemaFormat,
    OptionalFormat,
    SequenceFormat,
    TagFormat,
    TagsWithSeparatorFormat,
    TriggeredTagsFormat,
)

from qwenfleet.deployments.ingress.errors import shorten
from qwenfleet.deployments.qwen.held_schema import Within, unknown_in, what_holds
from qwenfleet.deployments.vllm_adapter.xml_arguments import MOST_BLANKS, arguments_of

QWEN3_CODER: Final = "qwenfleet_qwen3_coder"
HERMES: Final = "qwenfleet_hermes"
"""Names for a tool parser's `structural_tag_model`."""
NO_ARGUMENTS: Final = {"type": "object", "properties": {}}
ANY_OBJECT: Final = {"type": "object", "additionalProperties": True}

Functions = Mapping[str, Any]
"""The request's functions by name."""


def register() -> None:
    """Make vLLM know both tags in this process; more than one call changes nothing."""
    register_vllm_structural_tag(QWEN3_CODER)(_builder(_xml_tags, "<function="))
    register_vllm_structural_tag(HERMES)(_builder(_json_tags, "<tool_call>"))


def refuse_unheld(request: Any, model: str = QWEN3_CODER) -> None:
    """Raise VLLMValidationError if a tool that may be called is strict by its own words, and its
    schema has what the grammar of this `structural_tag_model` does not hold. For a request that has
    a tag."""
    within = Within.PARAMETERS if model == QWEN3_CODER else Within.JSON
    named = _named(request.tool_choice)
    for tool in get_structural_tag_tools(model, request.tools or [], request.tool_choice):
        function = tool if isinstance(tool, FunctionTool) else getattr(tool, "function", None)
        if function is None or function.strict is not True or named not in (None, function.name):
            continue
        found = unknown_in(_schema(function), within)
        if found:
            raise VLLMValidationError(_sentence(function.name, found), parameter="tools")


def _named(choice: Any) -> str | None:
    """The tool that must be called."""
    name = getattr(getattr(choice, "function", choice), "name", None)
    return name if isinstance(name, str) else None


def _sentence(name: str, found: Sequence[str]) -> str:
    what, pronoun = ", ".join(found[:3]), "it" if len(found) == 1 else "them"
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"the tool '{shorten(name)}' is strict, and its schema has what a strict call cannot be "
        f"held to: {what}{more}. Take {pronoun} out, or send the tool without 'strict'."
    )


_Builder = Callable[[list[Any], list[Any], str, bool, str], StructuralTag]


def _builder(tags_of: Callable[[Functions, bool], list[TagFormat]], trigger: str) -> _Builder:
    def build(
        tools: list[Any], builtin_tools: list[Any], choice: str, reasoning: bool, token_suffix: str
    ) -> StructuralTag:
        del builtin_tools, reasoning, token_suffix
        functions = {tool.function.name: tool.function for tool in tools}
        if choice == "auto":
            tags = tags_of(functions, False)
            free = TriggeredTagsFormat(triggers=[trigger], tags=tags) if tags else AnyTextFormat()
            return StructuralTag(format=free)
        forced = TagsWithSeparatorFormat(
            tags=tags_of(functions, True),
            separator="\n",
            at_least_one=True,
            stop_after_first=choice == "forced",  # a tool that is named is called once
        )
        return StructuralTag(format=forced)

    return build


def _xml_tags(functions: Functions, is_forced: bool) -> list[TagFormat]:
    """Qwen3-Coder's calls. It forgets `<tool_call>` at times, and a parser takes it then."""
    opener = "<tool_call>\n" if is_forced else ""
    closer = ConstStringFormat(value="\n</tool_call>")
    ending = closer if is_forced else OptionalFormat(content=closer)
    return [
        TagFormat(
            begin=f"{opener}<function={name}>\n",
            content=SequenceFormat(
                elements=[_xml_arguments(function), ConstStringFormat(value="</function>"), ending]
            ),
            end="",  # which else no value could contain
        )
        for name, function in functions.items()
    ]


def _xml_arguments(function: Any) -> Format:
    is_strict = function.strict is True
    return arguments_of(what_holds(_schema(function), Within.PARAMETERS) if is_strict else True)


def _json_tags(functions: Functions, is_forced: bool) -> list[TagFormat]:
    """Calls in Hermes' format, with or without newlines around the JSON."""
    del is_forced
    return [
        TagFormat(
            begin=f'<tool_call>{line}{{"name": {_quoted(name)}, "arguments": ',
            content=_json_arguments(function),
            end=f"}}{line}</tool_call>",
        )
        for name, function in functions.items()
        for line in ("\n", "")
    ]


def _json_arguments(function: Any) -> Format:
    held = what_holds(_schema(function)) if function.strict is True else None
    schema = held if isinstance(held, dict) else ANY_OBJECT
    return JSONSchemaFormat(json_schema=schema, max_whitespace_cnt=MOST_BLANKS)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _schema(function: Any) -> Any:
    return NO_ARGUMENTS if function.parameters is None else function.parameters
