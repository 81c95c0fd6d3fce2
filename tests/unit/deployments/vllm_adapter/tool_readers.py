"""Answers with tool calls, read from each API, whole and streamed, into one form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Read:
    """An answer: its text, the names and arguments of its calls, and what it ends with."""

    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    end: str = ""
    first_arguments: list[Any] = field(default_factory=list)
    """What the first piece of each streamed call has as its arguments."""


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n")]
    return [json.loads(line) for line in lines if line.startswith("{")]


def whole_chat(answer: httpx.Response) -> Read:
    (choice,) = answer.json()["choices"]
    message = choice["message"]
    calls = message.get("tool_calls") or []
    return Read(
        text=message["content"] or "",
        calls=[(call["function"]["name"], call["function"]["arguments"]) for call in calls],
        ids=[call["id"] for call in calls],
        end=choice["finish_reason"],
    )


def streamed_chat(answer: httpx.Response) -> Read:
    read = Read()
    arguments: list[str] = []
    for event in events(answer):
        for choice in event["choices"]:
            delta = choice["delta"]
            read.text += delta.get("content") or ""
            read.end = choice.get("finish_reason") or read.end
            for call in delta.get("tool_calls", ()):
                function = call["function"]
                if call["index"] == len(arguments):
                    assert call["type"] == "function"
                    read.calls.append((function["name"], ""))
                    read.ids.append(call["id"])
                    read.first_arguments.append(function.get("arguments"))
                    arguments.append("")
                else:
                    assert call.get("id") is None
                    assert function.get("name") is None
                arguments[call["index"]] += function.get("arguments") or ""
    read.calls = [(name, text) for (name, _), text in zip(read.calls, arguments, strict=True)]
    return read


def whole_message(answer: httpx.Response) -> Read:
    body = answer.json()
    blocks = body["content"]
    calls = [block for block in blocks if block["type"] == "tool_use"]
    return Read(
        text="".join(block["text"] for block in blocks if block["type"] == "text"),
        calls=[(call["name"], json.dumps(call["input"])) for call in calls],
        ids=[call["id"] for call in calls],
        end=body["stop_reason"],
    )


def streamed_message(answer: httpx.Response) -> Read:
    read, blocks = Read(), {}
    for event in events(answer):
        match event["type"]:
            case "content_block_start":
                block = event["content_block"]
                blocks[event["index"]] = {**block, "json": "", "is_open": True}
                assert list(blocks) == list(range(len(blocks)))
            case "content_block_delta":
                block, delta = blocks[event["index"]], event["delta"]
                assert block["is_open"]
                block["text"] = (block.get("text") or "") + delta.get("text", "")
                block["json"] += delta.get("partial_json", "")
            case "content_block_stop":
                blocks[event["index"]]["is_open"] = False
            case "message_delta":
                read.end = event["delta"]["stop_reason"]
    assert not any(block["is_open"] for block in blocks.values())
    calls = [block for block in blocks.values() if block["type"] == "tool_use"]
    read.text = "".join(b["text"] for b in blocks.values() if b["type"] == "text")
    read.calls = [(call["name"], call["json"]) for call in calls]
    read.ids = [call["id"] for call in calls]
    return read


def whole_response(answer: httpx.Response) -> Read:
    return _items(answer.json())


def streamed_response(answer: httpx.Response) -> Read:
    found = events(answer)
    read = _items(found[-1]["response"])
    joined: dict[str, str] = {}
    text = ""
    for event in found:
        match event["type"]:
            case "response.function_call_arguments.delta":
                joined[event["item_id"]] = joined.get(event["item_id"], "") + event["delta"]
            case "response.output_text.delta":
                text += event["delta"]
            case "response.function_call_arguments.done":
                assert joined.get(event["item_id"], "") == event["arguments"]
    assert text == read.text
    assert [call[1] for call in read.calls if call[1]] == [one for one in joined.values() if one]
    return read


def _items(body: Mapping[str, Any]) -> Read:
    calls = [item for item in body["output"] if item["type"] == "function_call"]
    messages = [item for item in body["output"] if item["type"] == "message"]
    read = Read(
        text="".join(part["text"] for item in messages for part in item["content"]),
        calls=[(call["name"], call["arguments"]) for call in calls],
        ids=[call["call_id"] for call in calls],
        end=body["status"],
    )
    if calls and calls[-1]["status"] == "incomplete":
        read.end += ", cut"
    return read


def chat(text: str, tools: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": text}],
        "tools": [{"type": "function", "function": _function(n, s)} for n, s in tools.items()],
    }


def message(text: str, tools: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8000,
        "tools": [
            {"name": name, "description": "", "input_schema": schema or {"type": "object"}}
            for name, schema in tools.items()
        ],
    }


def response(text: str, tools: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input": text,
        "tools": [{"type": "function", **_function(n, s)} for n, s in tools.items()],
    }


def _function(name: str, schema: Any) -> dict[str, Any]:
    return {"name": name, "description": "", "parameters": schema or {"type": "object"}}


@dataclass(frozen=True)
class Api:
    """One API: its route, how a request is made, how an answer is read, what its ends mean."""

    path: str
    body: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    whole: Callable[[httpx.Response], Read]
    streamed: Callable[[httpx.Response], Read]
    called: str
    stopped: str
    length: str
    cut_by_stop: str
    """A call was cut and the model stopped."""
    cut_by_length: str


CHAT = Api(
    "/v1/chat/completions", chat, whole_chat, streamed_chat,
    "tool_calls", "stop", "length", "stop", "length",
)  # fmt: skip
MESSAGES = Api(
    "/v1/messages", message, whole_message, streamed_message,
    "tool_use", "end_turn", "max_tokens", "end_turn", "max_tokens",
)  # fmt: skip
RESPONSES = Api(
    "/v1/responses", response, whole_response, streamed_response,
    "completed", "completed", "incomplete", "completed, cut", "incomplete, cut",
)  # fmt: skip
APIS = {"chat": CHAT, "messages": MESSAGES, "responses": RESPONSES}
