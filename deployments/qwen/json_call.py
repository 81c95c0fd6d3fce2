"""JSON calls: `{"name": ..., "arguments": {...}}` inside `<tool_call>`, as Hermes' format has it.

Arguments are passed on as they come. What models get wrong most often is put right on the way: line
breaks inside strings, a comma before a closing bracket, and Python's True, False and None.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container
from typing import Any, Final, NoReturn

from qwenfleet.deployments.qwen.argument_types import dumps
from qwenfleet.deployments.qwen.lookahead import Lookahead

_KEYS: Final = ('"arguments"', '"parameters"')
_WORDS: Final = {"True": "true", "False": "false", "None": "null"}
_OUTSIDE: Final = re.compile(r"[^\"{}\[\],A-Za-z<]+")
_WORD: Final = re.compile(r"[A-Za-z]+")
_BEFORE_NAME: Final = re.compile(r"[\s,]*")
_BEFORE_VALUE: Final = re.compile(r"\s*:\s*")
_ENDED: Final = re.compile(r"\s*[,}]")
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
        if arguments is None:
            arguments = {}
        return (found["name"], dumps(arguments)) if isinstance(arguments, dict) else None
    except (ValueError, TypeError, RecursionError):
        return None


class JsonArguments:
    """The JSON object of arguments, in pieces of text."""

    def __init__(self) -> None:
        self._closers: list[str] = []
        """Those of the containers that are open, the innermost last."""
        self._sent: list[str] = []
        self._held: list[str] = []
        """A comma and the blanks after it, or a word that may go on."""
        self._is_in_string = False
        self._is_escape = False
        self.is_done = False
        """Whether the object has ended."""

    def feed(self, text: str, at: int) -> tuple[str, int]:
        """Return the JSON of the text from `at`, and where the object or the text ended. A `<` ends
        an object whose last brackets are missing."""
        pieces: list[str] = []
        while at < len(text) and not self.is_done:
            read = self._inside if self._is_in_string else self._outside
            at = read(text, at, pieces)
        self._sent += pieces
        return "".join(pieces), at

    @property
    def is_valid(self) -> bool:
        """Whether what was sent is a JSON object."""
        return is_object("".join(self._sent))

    def _inside(self, text: str, at: int, pieces: list[str]) -> int:
        found = None if self._is_escape else _INSIDE.match(text, at)
        if found is not None:
            pieces.append(found[0])
            return found.end()
        letter = text[at]
        if letter < " ":  # a backslash before a line break stands for itself
            pieces.append("\\" * self._is_escape + json.dumps(letter)[1:-1])
            self._is_escape = False
            return at + 1
        pieces.append(letter)
        self._is_in_string = self._is_escape or letter != '"'
        self._is_escape = not self._is_escape and letter == "\\"
        return at + 1

    def _outside(self, text: str, at: int, pieces: list[str]) -> int:
        word = _WORD.match(text, at)
        if word is not None:
            if self._held[:1] == [","]:
                self._settle(pieces)
            self._held.append(word[0])
            return word.end()
        between = _OUTSIDE.match(text, at)
        if between is not None:
            is_after_comma = self._held[:1] == [","] and between[0].isspace()
            if not is_after_comma:
                self._settle(pieces)
            (self._held if is_after_comma else pieces).append(between[0])
            return between.end()
        if text[at] == "<":
            self._end_early(pieces)
            return at
        self._punctuation(text[at], pieces)
        return at + 1

    def _punctuation(self, mark: str, pieces: list[str]) -> None:
        self._settle(pieces, is_last=mark in "}]")
        if mark == ",":
            self._held.append(mark)
            return
        pieces.append(mark)
        if mark == '"':
            self._is_in_string = True
        elif mark in "{[":
            self._closers.append("}" if mark == "{" else "]")
        else:
            self._closers.pop()
            self.is_done = not self._closers

    def _end_early(self, pieces: list[str]) -> None:
        """Add the brackets that are missing, if that makes an object."""
        self._settle(pieces, is_last=True)
        closers = "".join(reversed(self._closers))
        if is_object("".join((*self._sent, *pieces, closers))):
            pieces.append(closers)
        self.is_done = True

    def _settle(self, pieces: list[str], *, is_last: bool = False) -> None:
        """Tell what was held, but for the comma after the last entry of a container."""
        if is_last and self._held[:1] == [","]:
            del self._held[0]
        held = "".join(self._held)
        pieces.append(_WORDS.get(held, held))
        self._held = []


def is_object(text: str) -> bool:
    """Whether this is the JSON of an object, with numbers that can be sent again."""
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        return isinstance(found, dict)
    except (ValueError, RecursionError):
        return False


def complete_members(text: str) -> dict[str, Any]:
    """Return the members of a JSON object that had ended where it was cut."""
    decoder = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
    found: dict[str, Any] = {}
    at = text.find("{") + 1
    while at:
        try:
            name, at = decoder.raw_decode(text, _after(_BEFORE_NAME, text, at))
            value, at = decoder.raw_decode(text, _after(_BEFORE_VALUE, text, at))
        except (ValueError, RecursionError):
            break
        if _ENDED.match(text, at) or not isinstance(value, int | float):
            found[name] = value  # a number that was cut is a number too
    return found


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(number: str) -> float:
    found = float(number)
    return found if math.isfinite(found) else _refuse(number)
