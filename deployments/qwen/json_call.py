"""JSON calls: `{"name": ..., "arguments": {...}}` inside `<tool_call>`, as Hermes' format has it.

Arguments are passed on as they come. What models get wrong most often is put right on the way: line
breaks inside strings, a comma before a closing bracket, and Python's True, False and None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import Any, Final

from qwenfleet.deployments.qwen.argument_types import dumps
from qwenfleet.deployments.qwen.lookahead import Lookahead

_KEYS: Final = ('"arguments"', '"parameters"')
_WORDS: Final = {"True": "true", "False": "false", "None": "null"}
_OUTSIDE: Final = re.compile(r"[^\"{}\[\],A-Za-z]+")
_WORD: Final = re.compile(r"[A-Za-z]+")
_INSIDE: Final = re.compile(r"[^\"\\\x00-\x1f]+")


def streamed_head(ahead: Lookahead, tools: Container[str]) -> str | None:
    """Pass the usual begin of a call, after its first `{`, up to the `{` of its arguments, and
    return the tool's name; None if it has another form. Raises NeedsMore."""
    ahead.blanks()
    if not ahead.take('"name"'):
        return None
    name = None
    ahead.blanks()
    if ahead.take(":"):
        ahead.blanks()
        name = ahead.name('"') if ahead.take('"') else None
    if name not in tools:
        return None
    ahead.blanks()
    if not ahead.take(","):
        return None
    ahead.blanks()
    if not any(map(ahead.take, _KEYS)):
        return None
    ahead.blanks()
    if not ahead.take(":"):
        return None
    ahead.blanks()
    at = ahead.at
    if not ahead.take("{"):
        return None
    ahead.at = at
    return name


def whole_call(text: str, tools: Container[str]) -> tuple[str, str] | None:
    """Return the name and the arguments, as JSON, of a call in any order and form of its members;
    None if these tools have no such call."""
    try:
        found = json.loads(text, parse_constant=_refuse)
        if not isinstance(found, dict) or found.get("name") not in tools:
            return None
        arguments: Any = found.get("arguments", found.get("parameters"))
        if isinstance(arguments, str):
            arguments = json.loads(arguments, parse_constant=_refuse)
    except (ValueError, TypeError, RecursionError):
        return None
    if arguments is None:
        arguments = {}
    return (found["name"], dumps(arguments)) if isinstance(arguments, dict) else None


class JsonArguments:
    """The JSON object of arguments, in pieces of text."""

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._sent: list[str] = []
        self._held = ""
        """A comma and what stands between it and the next value, or a word that may go on."""
        self._is_in_string = False
        self._is_escape = False
        self.is_done = False
        """Whether the object has ended."""

    def feed(self, text: str, at: int) -> tuple[str, int]:
        """Return the JSON of the text from `at`, and where the object or the text ended."""
        pieces: list[str] = []
        while at < len(text) and not self.is_done:
            at = (
                self._inside(text, at, pieces)
                if self._is_in_string
                else (self._outside(text, at, pieces))
            )
        self._sent += pieces
        return "".join(pieces), at

    @property
    def is_valid(self) -> bool:
        """Whether what was sent is a JSON object."""
        try:
            return isinstance(json.loads("".join(self._sent), parse_constant=_refuse), dict)
        except (ValueError, RecursionError):
            return False

    def _inside(self, text: str, at: int, pieces: list[str]) -> int:
        found = None if self._is_escape else _INSIDE.match(text, at)
        if found is not None:
            pieces.append(found[0])
            return found.end()
        letter = text[at]
        if self._is_escape:
            pieces.append(letter)
            self._is_escape = False
        elif letter < " ":
            pieces.append(json.dumps(letter)[1:-1])
        else:
            pieces.append(letter)
            self._is_escape = letter == "\\"
            self._is_in_string = letter != '"'
        return at + 1

    def _outside(self, text: str, at: int, pieces: list[str]) -> int:
        word = _WORD.match(text, at)
        if word is not None:
            if self._held.startswith(","):
                pieces.append(self._held)
                self._held = ""
            self._held += word[0]
            return word.end()
        between = _OUTSIDE.match(text, at)
        if between is not None:
            self._settle_word(pieces)
            if self._held and not between[0].isspace():
                pieces.append(self._held)
                self._held = ""
            if self._held:
                self._held += between[0]
            else:
                pieces.append(between[0])
            return between.end()
        self._punctuation(text[at], pieces)
        return at + 1

    def _punctuation(self, mark: str, pieces: list[str]) -> None:
        self._settle_word(pieces)
        if self._held:
            pieces.append(self._held.lstrip(",") if mark in "}]" else self._held)
            self._held = ""
        if mark == ",":
            self._held = mark
            return
        pieces.append(mark)
        if mark == '"':
            self._is_in_string = True
        elif mark in "{[":
            self._closers.append(mark)
        else:
            self._closers.pop()
            self.is_done = not self._closers

    def _settle_word(self, pieces: list[str]) -> None:
        if self._held and not self._held.startswith(","):
            pieces.append(_WORDS.get(self._held, self._held))
            self._held = ""


def _refuse(constant: str) -> None:
    raise ValueError(constant)
