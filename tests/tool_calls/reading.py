"""Reading: what a reader's events say, whatever pieces they came in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from qwenfleet.deployments.qwen.events import Arguments, CallEnd, CallStart, Event, Text
from qwenfleet.deployments.qwen.tool_dialect import ToolDialect
from tests.tool_calls.case import Call, Tools

Answer = list[str | Call]
"""Texts and calls in their order; the arguments of each call are what was sent."""


def read(tools: Tools, pieces: Iterable[str]) -> Answer:
    """Feed the pieces to a reader, and return what it tells."""
    dialect = ToolDialect(tools)
    events = [event for piece in pieces for event in dialect.feed(piece)]
    return merged(events + dialect.finish())


def merged(events: Iterable[Event]) -> Answer:
    """Join what belongs together. Fails if an event is empty or stands where it cannot."""
    found: Answer = []
    name: str | None = None
    sent = ""
    for event in events:
        match event:
            case Text(text):
                assert text
                assert name is None
                before = found.pop() if found and isinstance(found[-1], str) else ""
                found.append(f"{before}{text}")
            case CallStart():
                assert name is None
                name, sent = event.name, ""
            case Arguments(piece):
                assert piece
                assert name is not None
                sent += piece
            case CallEnd(is_complete):
                assert name is not None
                found.append(Call(name, sent, is_complete))
                name = None
    assert name is None, "a call has no end"
    return found


def text_of(answer: Answer) -> str:
    return "".join(part for part in answer if isinstance(part, str))


def calls_of(answer: Answer) -> list[tuple[str, str]]:
    """The names and arguments of the calls, as `expected` writes them. Fails if those of a
    complete call are not a JSON object."""
    return [_as_sent(call) for call in answer if isinstance(call, Call)]


def expected(calls: Iterable[Call]) -> list[tuple[str, str]]:
    """The names and arguments of calls; 5, 5.0, "5" and true differ, and so do orders."""
    return [(call.name, _written(call.arguments, call.is_complete)) for call in calls]


def _as_sent(call: Call) -> tuple[str, str]:
    call.arguments.encode()
    if not call.is_complete:
        return call.name, _written(call.arguments, False)
    arguments = json.loads(call.arguments)
    assert isinstance(arguments, dict)
    return call.name, _written(arguments, True)


def _written(arguments: Any, is_complete: bool) -> str:
    return f"complete: {json.dumps(arguments)}" if is_complete else f"cut: {arguments}"
