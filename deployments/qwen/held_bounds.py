"""Held bounds: the limits of numbers, lengths and counts of a JSON schema that xgrammar can hold.

xgrammar (0.2.8) raises on bounds that exclude each other, on numbers beyond 64 bits and on half an
integer, and ignores a `multipleOf` of all numbers, of more than 1,024, and between wide bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MOST_BOUND: Final = 10**15
"""Numbers beyond it are not held as they are written."""
MOST_COUNT: Final = 100_000
"""Characters, entries or members that are counted."""
MOST_MULTIPLE: Final = 1024
MOST_RANGE: Final = 10_000
"""Integers between the bounds of a `multipleOf` that is held."""

Node = Mapping[str, Any]


@dataclass
class Bounds:
    """What is held, and the keywords that are not."""

    held: dict[str, Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def counts(node: Node, low: str, high: str, room: float = MOST_COUNT) -> Bounds:
    """Bound a length or a count, of which there can be `room` at most."""
    found = Bounds()
    least, most = (_number(node, key, found) for key in (low, high))
    least = None if least is None or least <= 0 else math.ceil(least)
    most = None if most is None else math.floor(most)
    if most is not None and most < 0:
        found.unknown.append(high)
        most = None
    if least is not None and least > min(room, MOST_COUNT if most is None else most):
        found.unknown.append(low)
        least = None
    if least is not None:
        found.held[low] = least
    if most is not None and most <= MOST_COUNT:
        found.held[high] = most
    return found


def numbers(node: Node, *, is_integer: bool) -> Bounds:
    """Bound a number."""
    found = Bounds()
    bounds = {
        key: _number(node, key, found)
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
        if not isinstance(node.get(key), bool)
    }
    for plain, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if node.get(strict) is True:  # as draft 4 has it
            bounds[strict] = bounds.pop(plain, None)
    held = {key: value for key, value in bounds.items() if value is not None}
    if is_integer:
        held = _integers(held)
    low = max((held[key] for key in ("minimum", "exclusiveMinimum") if key in held), default=None)
    high = min((held[key] for key in ("maximum", "exclusiveMaximum") if key in held), default=None)
    is_strict = any(
        held.get(key) in (low, high) for key in ("exclusiveMinimum", "exclusiveMaximum")
    )
    if low is not None and high is not None and (low > high or (low == high and is_strict)):
        found.unknown += held
        held = {}
    found.held = dict(held)
    _multiple(node, found, is_integer=is_integer)
    return found


def _number(node: Node, key: str, found: Bounds) -> int | float | None:
    value = node.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        found.unknown.append(key)
        return None
    if not abs(value) <= MOST_BOUND:
        found.unknown.append(key)
        return None
    return value


def _integers(held: Mapping[str, int | float]) -> dict[str, int | float]:
    lows = [math.ceil(held["minimum"])] if "minimum" in held else []
    lows += [math.floor(held["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in held else []
    highs = [math.floor(held["maximum"])] if "maximum" in held else []
    highs += [math.ceil(held["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in held else []
    found: dict[str, int | float] = {"minimum": max(lows)} if lows else {}
    return found | ({"maximum": min(highs)} if highs else {})


def _multiple(node: Node, found: Bounds, *, is_integer: bool) -> None:
    value = _number(node, "multipleOf", found)
    if value is None:
        return
    low, high = found.held.get("minimum"), found.held.get("maximum")
    is_held = is_integer and 1 <= value <= MOST_MULTIPLE and value == int(value)
    if is_held and (low is not None or high is not None):
        is_held = (
            low is not None
            and high is not None
            and high - low < MOST_RANGE
            and high // value * value >= low
        )
    if is_held:
        found.held["multipleOf"] = int(value)
    else:
        found.unknown.append("multipleOf")
