"""Pattern reader: a JSON schema's regular expression, as ECMAScript writes it, as a tree. Pure."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

MOST_CHARS: Final = 4096
MOST_DEPTH: Final = 32
"""Groups inside groups."""
MOST_SIZE: Final = 4096
"""Characters and classes once all counts are written out."""

MOST_COUNTED: Final = 192
"""The same of one count. Each state of a grammar has a mask of all tokens: with Qwen3's 151,936,
`[a-z]{1,128}` takes 0.45 s to compile and `.{1,128}` 4.6 s (xgrammar 0.2.8)."""
WIDE_SIZE: Final = 8
"""The size of a class that nearly every token begins in."""

Ranges = tuple[tuple[int, int], ...]
"""Code points, sorted, apart, both ends included."""

ALL: Final[Ranges] = ((0, 0xD7FF), (0xE000, 0x10FFFF))
_DIGITS: Final[Ranges] = ((0x30, 0x39),)
_WORDS: Final[Ranges] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACES: Final[Ranges] = (
    *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
_LINE_ENDS: Final[Ranges] = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CLASSES: Final = {"d": _DIGITS, "w": _WORDS, "s": _SPACES}
_CONTROLS: Final = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B}

_COUNT: Final = re.compile(r"\{([0-9]+)(,([0-9]+)?)?\}")
_HEX: Final = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")
_GROUP: Final = re.compile(r"\?:|\?P?<[A-Za-z_][A-Za-z0-9_]*>")


class Unheld(ValueError):
    """xgrammar cannot hold the pattern."""


@dataclass(frozen=True)
class CharSet:
    """One character; a wide one is a wildcard or an exclusion, which nobody wrote for its `<`."""

    ranges: Ranges
    is_wide: bool = False


@dataclass(frozen=True)
class Edge:
    """`^` or `$`."""

    mark: str


@dataclass(frozen=True)
class Count:
    part: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Group:
    """Alternatives, each a sequence."""

    options: tuple[tuple[Node, ...], ...]


Node = CharSet | Edge | Count | Group


@lru_cache(maxsize=256)
def parsed(pattern: str) -> Group:
    if len(pattern) > MOST_CHARS:
        raise Unheld("it is too long")
    reader = _Reader(pattern)
    found = reader.group(0)
    if reader.at < len(pattern):
        raise Unheld("a parenthesis is not open")
    if _size(found) > MOST_SIZE:
        raise Unheld("its counts are too large")
    return found


class _Reader:
    """Reads a pattern, as ECMAScript writes it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0

    def group(self, depth: int) -> Group:
        """Read alternatives up to a closing parenthesis or the end."""
        if depth > MOST_DEPTH:
            raise Unheld("its groups are too deep")
        options: list[tuple[Node, ...]] = []
        parts: list[Node] = []
        while (letter := self._peek()) not in ("", ")"):
            if letter == "|":
                self.at += 1
                options.append(tuple(parts))
                parts = []
            else:
                parts.append(self._counted(self._atom(depth)))
        return Group((*options, tuple(parts)))

    def _peek(self) -> str:
        return self._text[self.at : self.at + 1]

    def _take(self) -> str:
        letter = self._peek()
        if not letter:
            raise Unheld("it ends early")
        self.at += 1
        return letter

    def _atom(self, depth: int) -> Node:
        letter = self._take()
        match letter:
            case "^" | "$":
                return Edge(letter)
            case ".":
                return CharSet(without(ALL, _LINE_ENDS), is_wide=True)
            case "(":
                return self._parenthesis(depth)
            case "[":
                return self._class()
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                raise Unheld("a count has nothing to count")
            case _:
                return _one(ord(letter))

    def _parenthesis(self, depth: int) -> Group:
        if self._peek() == "?":
            found = _GROUP.match(self._text, self.at)
            if found is None:
                raise Unheld("a group of this kind cannot be held")
            self.at = found.end()
        group = self.group(depth + 1)
        if self._take() != ")":
            raise Unheld("a parenthesis is not closed")
        return group

    def _escape(self) -> CharSet:
        letter = self._take()
        if letter.lower() in _CLASSES:
            ranges = _CLASSES[letter.lower()]
            return (
                CharSet(ranges) if letter.islower() else CharSet(without(ALL, ranges), is_wide=True)
            )
        return _one(self._literal(letter))

    def _literal(self, letter: str) -> int:
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter == "0" and not self._peek().isdigit():
            return 0
        found = _HEX.match(self._text, self.at - 1)
        if found is not None:
            self.at = found.end()
            return int(found[found.lastindex or 0], 16)
        if letter.isalnum():
            raise Unheld(f"\\{letter} cannot be held")
        return ord(letter)

    def _class(self) -> CharSet:
        is_excluding = self._peek() == "^"
        self.at += is_excluding
        ranges: list[tuple[int, int]] = []
        is_wide = is_excluding
        while (letter := self._take()) != "]":
            if letter == "[" and self._peek() == ":":
                raise Unheld("a named class cannot be held")
            first = self._member(letter)
            if self._peek() == "-" and self._text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self._member(self._take())
                first = _between(first, last)
            is_wide |= first.is_wide
            ranges += first.ranges
        if not ranges and not is_excluding:
            raise Unheld("a class is empty")
        joined = _joined(ranges)
        return CharSet(without(ALL, joined) if is_excluding else joined, is_wide)

    def _member(self, letter: str) -> CharSet:
        return self._escape() if letter == "\\" else _one(ord(letter))

    def _counted(self, part: Node) -> Node:
        letter = self._peek()
        found = _COUNT.match(self._text, self.at) if letter == "{" else None
        if found is not None:
            self.at = found.end()
            least = int(found[1])
            most = least if found[2] is None else None if found[3] is None else int(found[3])
            if most is not None and most < least:
                raise Unheld("a count is the wrong way round")
        elif self._text.startswith("{,", self.at):
            raise Unheld("languages do not agree on a count without a start")
        elif letter and letter in "*+?":
            self.at += 1
            least, most = int(letter == "+"), 1 if letter == "?" else None
        else:
            return part
        if self._peek() == "?":
            self.at += 1  # lazy: it matches the same strings
        if isinstance(part, Edge) or self._peek() in ("*", "+", "?"):
            raise Unheld("a count of this kind cannot be held")
        count = Count(part, least, most)
        if max(least, most or 0) > 1 and _size(count) > MOST_COUNTED:
            raise Unheld("a count is too large")
        return count


def _one(code: int) -> CharSet:
    if 0xD800 <= code <= 0xDFFF or code > sys.maxunicode:
        raise Unheld("a character is half of one")
    return CharSet(((code, code),))


def _between(first: CharSet, last: CharSet) -> CharSet:
    """A range of a class; `[\\w-.]` means three members."""
    start, end = first.ranges, last.ranges
    if len(start) == len(end) == 1 and start[0][0] == start[0][1] and end[0][0] == end[0][1]:
        if end[0][0] < start[0][0]:
            raise Unheld("a range is the wrong way round")
        return CharSet(without(((start[0][0], end[0][0]),), ((0xD800, 0xDFFF),)))
    return CharSet((*start, (0x2D, 0x2D), *end), first.is_wide or last.is_wide)


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return tuple(found)


@lru_cache(maxsize=256)
def without(ranges: Ranges, excluded: Ranges) -> Ranges:
    """Return the code points of the first that are not in the second."""
    found: list[tuple[int, int]] = []
    at = 0
    for start, end in ranges:
        while at < len(excluded) and excluded[at][1] < start:
            at += 1
        index = at
        while index < len(excluded) and excluded[index][0] <= end:
            low, high = excluded[index]
            if start < low:
                found.append((start, low - 1))
            start = high + 1
            index += 1
        if start <= end:
            found.append((start, end))
    return tuple(found)


def _size(node: Node) -> int:
    match node:
        case Count(part, least, most):
            return _size(part) * max(least + 1 if most is None else most, 1)
        case Group(options):
            return 1 + sum(_size(part) for option in options for part in option)
        case CharSet():
            return WIDE_SIZE if node.is_wide else 1
        case _:
            return 1
