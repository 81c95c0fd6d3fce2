"""Arguments: writes the parameters of a call as one JSON object while they come."""

from __future__ import annotations

import json
from typing import Protocol

from qwenfleet.deployments.qwen.argument_types import (
    CONTAINERS,
    UNION_CHARS,
    Schema,
    dumps,
    to_json,
)


class _Value(Protocol):
    """Takes the text of one value in pieces and gives the pieces of its JSON."""

    def write(self, piece: str) -> str: ...

    def end(self) -> str: ...


class ArgumentWriter:
    """The arguments of one call, whose schema is that of its tool's parameters."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._written: set[str] = set()
        self._value: _Value | None = None

    def expects(self, name: str) -> bool:
        """Whether a parameter is declared and has no value yet."""
        return name not in self._written and self._schema.declares(name)

    @property
    def is_text(self) -> bool:
        """Whether the value that is written may be any text."""
        return not isinstance(self._value, _Typed)

    def begin(self, name: str) -> str:
        """Begin a value. That of a parameter that has one already is dropped: the first may have
        been sent."""
        if name in self._written:
            self._value = None
            return ""
        prefix = ", " if self._written else "{"
        self._written.add(name)
        self._value = _value(self._schema.member(name))
        return f"{prefix}{dumps(name)}: "

    def write(self, piece: str) -> str:
        return "" if self._value is None else self._value.write(piece)

    def end_value(self) -> str:
        value, self._value = self._value, None
        return "" if value is None else value.end()

    def end(self) -> str:
        """End the object."""
        return "}" if self._written else "{}"


def _value(schema: Schema) -> _Value:
    if schema.is_text:
        return _String()
    if "string" in schema.types and not any(map(_is_container, schema.choices)):
        return _Union(schema)
    return _Typed(schema)


def _is_container(value: object) -> bool:
    return isinstance(value, list | dict)


class _String:
    """A string, sent as it comes."""

    def __init__(self) -> None:
        self._is_open = False

    def write(self, piece: str) -> str:
        inner = json.dumps(piece, ensure_ascii=False)[1:-1]
        if self._is_open:
            return inner
        self._is_open = True
        return f'"{inner}'

    def end(self) -> str:
        return '"' if self._is_open else '""'


class _Typed:
    """A value that is read once it is complete."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._pieces: list[str] = []

    def write(self, piece: str) -> str:
        self._pieces.append(piece)
        return ""

    def end(self) -> str:
        return to_json("".join(self._pieces), self._schema)


class _Union:
    """A string or something else: sent as it comes, once it can be nothing but a string."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._held = ""
        self._string: _String | None = None
        self._typed: _Typed | None = None

    def write(self, piece: str) -> str:
        if self._string is not None:
            return self._string.write(piece)
        if self._typed is not None:
            return self._typed.write(piece)
        self._held += piece
        start = self._held[:UNION_CHARS].lstrip()[:1]
        if start in ("[", "{", "(") and self._schema.types.intersection(CONTAINERS):
            self._typed = _Typed(self._schema)
            return self._typed.write(self._held)
        if len(self._held) > UNION_CHARS:
            self._string = _String()
            return self._string.write(self._held)
        return ""

    def end(self) -> str:
        if self._string is not None:
            return self._string.end()
        return to_json(self._held, self._schema) if self._typed is None else self._typed.end()
