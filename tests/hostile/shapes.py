"""Shapes of bodies: requests of each route, and large or deep parts of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

CHAT: Final = "/v1/chat/completions"
TEXT: Final = "/v1/completions"


def text(**fields: Any) -> Callable[[], Any]:
    return lambda: {"model": "tiny", "prompt": "x", "max_tokens": 4} | fields


def chat(**fields: Any) -> Callable[[], Any]:
    messages = [{"role": "user", "content": "Hello"}]
    return lambda: {"model": "tiny", "messages": messages, "max_tokens": 4} | fields


def schema(made: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": made}}


def properties(count: int) -> dict[str, Any]:
    named = {f"field{i}": {"type": "integer"} for i in range(count)}
    return {"type": "object", "properties": named, "required": list(named)}


def words(count: int, size: int) -> list[str]:
    return [f"{i:06d}".ljust(size, "w") for i in range(count)]


def grammar(size: int) -> str:
    count = size // 30
    rules = "\n".join(f'r{i:06d} ::= "{i:06d}" r{(i + 1) % count:06d}' for i in range(count))
    return f"root ::= r000000\n{rules}\n"


def nested(depth: int) -> bytes:
    """A chat whose tool has parameters that are nested."""
    deep = '{"a":' * depth + "1" + "}" * depth
    tool = '{"type": "function", "function": {"name": "f", "parameters": DEEP}}'
    body = json.dumps(chat(tools=["TOOL"])()).replace('"TOOL"', tool.replace("DEEP", deep))
    return body.encode()


def responses(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": "Hello", "max_output_tokens": 64} | fields


def digits(count: int) -> bytes:
    return json.dumps(text(seed="SEED")()).replace('"SEED"', "9" * count).encode()


def doubling(depth: int) -> dict[str, Any]:
    named: dict[str, Any] = {
        f"d{i}": {
            "type": "object",
            "properties": {side: {"$ref": f"#/$defs/d{i + 1}"} for side in ("a", "b")},
            "required": ["a", "b"],
        }
        for i in range(depth)
    }
    named[f"d{depth}"] = {"type": "integer"}
    return {"$defs": named, "$ref": "#/$defs/d0"}


def with_body(head: Callable[..., bytes], field: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    kind = ("Content-Type: application/json", f"Content-Length: {len(data)}")
    fields = (field, "Connection: close", *kind)
    return head("POST", CHAT, *fields) + b"\r\n" + data


def turns(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "x"}] * count


def tools(count: int) -> list[dict[str, Any]]:
    named = [{"name": f"f{i}", "parameters": properties(3)} for i in range(count)]
    return [{"type": "function", "function": function} for function in named]


def unknown_keys(count: int) -> dict[str, int]:
    return {f"k{i}": 1 for i in range(count)}
