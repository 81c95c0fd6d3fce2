"""Held pattern: a JSON schema's regular expression, as xgrammar can hold it.

A schema's pattern may match anywhere in a string, and xgrammar (0.2.8) reads it as one of the whole
string; it has two readers of expressions, which know different parts of the syntax, ignore others
without a word (lookahead, anchors, `(?i)`, `\\p` in a class), and let a wildcard write the quote
that ends the string. So a pattern is read here, and written anew with nothing but literals,
positive classes, groups, `|` and counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from qwenfleet.deployments.qwen.pattern_reader import (
    ALL,
    CharSet,
    Count,
    Edge,
    Group,
    Node,
    Ranges,
    Unheld,
    parsed,
    without,
)

_JSON_ESCAPES: Final = {34: '"', 92: "\\\\", 8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}
"""What may follow the backslash in a JSON string, as written in a class."""


@dataclass(frozen=True)
class TextPart:
    """One way to match a text that is written as it is: any text may stand before or after."""

    is_open_before: bool
    expression: str
    is_open_after: bool


def held_pattern(pattern: str, least: int = 0, most: int | None = None) -> str:
    """Return an expression of the whole of a JSON string; `least` and `most` bound its length.
    Raises Unheld."""
    rest = f"{_write_set(ALL, False)}*"
    written = [
        (rest if part.is_open_before else "", part.expression, rest if part.is_open_after else "")
        for part in _parts(pattern, least, most, is_text=False)
    ]
    return f"^(?:{'|'.join(map(''.join, written))})$"


def text_parts(pattern: str, least: int = 0, most: int | None = None) -> list[TextPart]:
    """Return the ways in which a text can match. Raises Unheld."""
    return list(_parts(pattern, least, most, is_text=True))


def _parts(pattern: str, least: int, most: int | None, *, is_text: bool) -> Iterator[TextPart]:
    is_bounded = least > 0 or most is not None
    for option in _options(parsed(pattern)):
        parts = _bounded(option, least, most) if is_bounded else option
        start, end = 0, len(parts)
        while start < end and parts[start] == Edge("^"):
            start += 1
        while end > start and parts[end - 1] == Edge("$"):
            end -= 1
        inner = "".join(_write(part, is_text) for part in parts[start:end])
        yield TextPart(start == 0, inner, end == len(parts))


def _options(group: Group) -> list[tuple[Node, ...]]:
    """The alternatives of the whole, also of those that are one group: anchors stand there."""
    found: list[tuple[Node, ...]] = []
    for option in group.options:
        if len(option) == 1 and isinstance(option[0], Group):
            found += _options(option[0])
        else:
            found.append(option)
    return found


def _bounded(option: tuple[Node, ...], least: int, most: int | None) -> tuple[Node, ...]:
    """Put the bounds of the length into `^[class]+$`, and leave what is within them anyway. Raises
    Unheld for any other pattern."""
    low, high = _lengths(option)
    is_whole = option[:1] == (Edge("^"),) and option[-1:] == (Edge("$"),)
    if is_whole and low >= least and (most is None or (high is not None and high <= most)):
        return option
    match option:
        case (Edge("^"), Count(CharSet() as part, low, high), Edge("$")):
            low = max(low, least)
            limits = [limit for limit in (high, most) if limit is not None]
            high = min(limits) if limits else None
            if high is None or low <= high:
                return (Edge("^"), Count(part, low, high), Edge("$"))
    raise Unheld("it cannot be held together with bounds of the length")


def _lengths(parts: tuple[Node, ...]) -> tuple[int, int | None]:
    """The least and most characters of a sequence."""
    least, most = 0, 0
    is_endless = False
    high: int | None
    for part in parts:
        match part:
            case CharSet():
                low, high = 1, 1
            case Count(inner, fewest, times):
                low, high = _lengths((inner,))
                low *= fewest
                high = None if times is None or high is None else high * times
            case Group(options):
                each = [_lengths(option) for option in options]
                low = min(found[0] for found in each)
                limits = [found[1] for found in each]
                high = None if None in limits else max(limit or 0 for limit in limits)
            case _:
                low, high = 0, 0
        least += low
        is_endless |= high is None
        most += high or 0
    return least, None if is_endless else most


def _write(node: Node, is_text: bool) -> str:
    match node:
        case CharSet(ranges, is_wide):
            is_safe = is_wide and is_text  # not the begin of a tag, unless somebody wrote it
            return _write_set(without(ranges, ((0x3C, 0x3C),)) if is_safe else ranges, is_text)
        case Count(part, least, most):
            return f"(?:{_write(part, is_text)}){_counted(least, most)}"
        case Group(options):
            written = ("".join(_write(part, is_text) for part in option) for option in options)
            return f"(?:{'|'.join(written)})"
        case _:
            raise Unheld("an anchor is in the middle")


def _counted(least: int, most: int | None) -> str:
    if most is None and least < 2:
        return "+" if least else "*"
    return f"{{{least},{'' if most is None else most}}}"


@lru_cache(maxsize=256)
def _write_set(ranges: Ranges, is_text: bool) -> str:
    if is_text:
        return _write_class(ranges)
    escaped = "".join(
        mark
        for code, mark in _JSON_ESCAPES.items()
        if any(start <= code <= end for start, end in ranges)
    )
    plain = without(ranges, ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)))
    if not escaped:
        return _write_class(plain)
    escape = f"\\\\[{escaped}]"
    return f"(?:{_write_class(plain)}|{escape})" if plain else f"(?:{escape})"


def _write_class(ranges: Ranges) -> str:
    if not ranges:
        raise Unheld("a character cannot be written")
    return f"[{''.join(_write_range(start, end) for start, end in ranges)}]"


def _write_range(start: int, end: int) -> str:
    return _write_code(start) if start == end else f"{_write_code(start)}-{_write_code(end)}"


def _write_code(code: int) -> str:
    letter = chr(code)
    return letter if letter.isascii() and letter.isalnum() else f"\\u{{{code:x}}}"
