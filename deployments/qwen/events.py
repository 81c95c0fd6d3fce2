"""Events: what a model's answer consists of, in its order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The begin of a call of one of the request's tools."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the JSON object that holds the arguments of the call."""

    json: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The end of a call. An incomplete one was cut, and its arguments are cut JSON."""

    is_complete: bool


Event = Text | CallStart | Arguments | CallEnd
