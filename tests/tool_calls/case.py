"""Case: what a model wrote, and what a client should get for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Tools = Mapping[str, Any]
"""Names of tools, and the JSON schemas of their parameters."""

STRING: Final = {"type": "string"}
TOOLS: Final[Tools] = {
    "write": {
        "type": "object",
        "properties": {"path": STRING, "content": STRING, "mode": {"type": "integer"}},
        "required": ["path"],
    },
    "run": {
        "type": "object",
        "properties": {
            "command": STRING,
            "timeout_s": {"type": "integer"},
            "args": {"type": "array", "items": STRING},
            "env": {"type": "object"},
        },
    },
    "now": {"type": "object", "properties": {}},
}


@dataclass(frozen=True)
class Call:
    """A call that a client should get."""

    name: str
    arguments: Any
    """An object; of an incomplete call, the text of its arguments up to where they were cut."""
    is_complete: bool = True


@dataclass(frozen=True)
class Case:
    """One answer of a model."""

    name: str
    output: str
    calls: tuple[Call, ...]
    text: str
    """The text before, between and after the calls, joined."""
    tools: Tools
    """Those of the request."""


def case(name: str, output: str, *calls: Call, text: str = "", tools: Tools = TOOLS) -> Case:
    return Case(name, output, calls, text, tools)


def call(name: str, **arguments: Any) -> Call:
    return Call(name, arguments)


def cut(name: str, arguments: str) -> Call:
    return Call(name, arguments, is_complete=False)


def xml(name: str, **parameters: str) -> str:
    """A call as the chat template of Qwen3-Coder writes it."""
    lines = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items()]
    return f"<tool_call>\n<function={name}>\n{''.join(lines)}</function>\n</tool_call>"


def hermes(name: str, arguments: str) -> str:
    """A call as the chat template of Qwen3-2507 writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
