"""Rules: what one field of a request may be. Pure.

A rule gets the path of a field, its value as JSON, and the limits, and raises a `FieldError`. It
takes everything that vLLM would take for the same type and stays cheap on a hostile value: it looks
at no more values than the limit allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeGuard

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress.field_errors import NotTaken, OutOfBounds, WrongValue
from qwenfleet.deployments.ingress.json_survey import survey

Rule = Callable[[str, Any, LimitsConfig], None]

INT32_MAX: Final = 2**31 - 1
"""vLLM 0.32 keeps counts in 32-bit tensors (v1/worker/gpu/sample/states.py)."""
INT64_MAX: Final = 2**63 - 1
"""Larger numbers cannot cross the wire, which is msgpack."""
NUMBER_CHARS: Final = 32
"""Longest number that is read from a string, as pydantic does."""


def whole(field: str, value: Any) -> int:
    """Return the whole number that vLLM would read, from a number or a string with one. A fraction
    is cut off; vLLM refuses it. Raises WrongValue."""
    try:
        if isinstance(value, str) and len(value) <= NUMBER_CHARS:
            value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        if isinstance(value, int | float):
            return int(value)
    except (ValueError, OverflowError):
        pass
    shown = repr(value) if isinstance(value, str) else describe(value)
    raise WrongValue(field, shown, "a whole number")


def between(low: int, high: int) -> Rule:
    """Allow whole numbers in these bounds, which no setting changes."""

    def rule(field: str, value: Any, _: LimitsConfig) -> None:
        _bound(field, whole(field, value), low, high, "")

    return rule


def up_to(setting: str, low: int = 0) -> Rule:
    """Allow whole numbers from `low` to the limit."""

    def rule(field: str, value: Any, limits: LimitsConfig) -> None:
        number = whole(field, value)
        _bound(field, number, low, getattr(limits, setting), setting if number > low else "")

    return rule


def finite(field: str, value: Any, _: LimitsConfig) -> None:
    """Allow numbers that are not infinite, as pydantic reads `"inf"`. vLLM checks the rest."""
    if isinstance(value, str) and not math.isfinite(_number(field, value)):
        raise WrongValue(field, repr(value), "a finite number")


def within(low: float, high: float) -> Rule:
    """Allow numbers in these bounds, which no setting changes."""

    def rule(field: str, value: Any, _: LimitsConfig) -> None:
        if isinstance(value, str | int | float) and not low <= _number(field, value) <= high:
            raise WrongValue(field, repr(value), f"a number from {low} to {high}")

    return rule


def _number(field: str, value: str | float) -> float:
    """Return the number as pydantic reads it; 0 for a text that is none, which vLLM refuses."""
    if isinstance(value, str) and len(value) > NUMBER_CHARS:
        raise WrongValue(field, repr(value), "a number")
    try:
        return float(value)
    except ValueError:
        return 0.0
    except OverflowError:
        return math.inf


def items(setting: str, kind: type[list[Any]] | type[dict[str, Any]] = list) -> Rule:
    """Allow lists, or objects, with as many entries as the limit."""
    wanted = "a list" if kind is list else "an object"

    def rule(field: str, value: Any, limits: LimitsConfig) -> None:
        if not isinstance(value, kind):
            raise WrongValue(field, describe(value), wanted)
        count(field, len(value), getattr(limits, setting), setting, "entries")

    return rule


def text(setting: str) -> Rule:
    """Allow strings with as many characters as the limit."""

    def rule(field: str, value: Any, limits: LimitsConfig) -> None:
        if not isinstance(value, str):
            raise WrongValue(field, describe(value), "a string")
        count(field, len(value), getattr(limits, setting), setting, "characters")

    return rule


def texts(chars: str) -> Rule:
    """Allow a string, or a list of strings, with as many characters in all as the limit."""

    def rule(field: str, value: Any, limits: LimitsConfig) -> None:
        entries = value if isinstance(value, list) else [value]
        for entry in entries:
            if not isinstance(entry, str):
                raise WrongValue(field, describe(entry), "strings")
        total = sum(map(len, entries))
        count(field, total, getattr(limits, chars), chars, "characters")

    return rule


def both(*rules: Rule) -> Rule:
    """Allow what every one of the rules allows."""

    def rule(field: str, value: Any, limits: LimitsConfig) -> None:
        for each in rules:
            each(field, value, limits)

    return rule


def tree(values: str, chars: str) -> Rule:
    """Allow any JSON with as many values and characters as the limits."""

    def rule(field: str, value: Any, limits: LimitsConfig) -> None:
        most_values, most_chars = getattr(limits, values), getattr(limits, chars)
        seen, length = 0, 0
        stack = [value]
        while stack and seen <= most_values and length <= most_chars:
            node = stack.pop()
            seen += 1
            if isinstance(node, str):
                length += len(node)
            elif isinstance(node, list):
                stack.extend(node)
            elif isinstance(node, dict):
                seen += len(node)
                length += sum(map(len, node))
                stack.extend(node.values())
        count(field, seen, most_values, values, "values")
        count(field, length, most_chars, chars, "characters")

    return rule


def of(**fields: Rule) -> Rule:
    """Allow objects; each of these fields has its own rule."""

    def rule(field: str, value: Any, limits: LimitsConfig) -> None:
        if not isinstance(value, dict):
            raise WrongValue(field, describe(value), "an object")
        for name, each in fields.items():
            if value.get(name) is not None:
                each(f"{field}.{name}", value[name], limits)

    return rule


def each_of(setting: str, entry: Rule) -> Rule:
    """Allow lists with as many entries as the limit, each of which has this rule."""
    whole_list = items(setting)

    def rule(field: str, value: Any, limits: LimitsConfig) -> None:
        whole_list(field, value, limits)
        for index, each in enumerate(value):
            entry(f"{field}[{index}]", each, limits)

    return rule


def inner_json(field: str, value: Any, limits: LimitsConfig) -> None:
    """Allow JSON in a string if it would be allowed as a body."""
    if isinstance(value, str) and value.count("[") + value.count("{") > 0:
        found = survey(value.encode("utf-8", "replace"), limits.body_values, limits.body_depth)
        count(field, found.values, limits.body_values, "body_values", "values")
        count(field, found.depth, limits.body_depth, "body_depth", "levels")


def refused(reason: str) -> Rule:
    """Allow nothing but an empty value."""

    def rule(field: str, value: Any, _: LimitsConfig) -> None:
        if value not in ("", [], {}, False):
            raise NotTaken(field, reason)

    return rule


def are_tokens(value: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of token ids."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def count(field: str, found: int, most: int, setting: str, unit: str) -> None:
    """Raise OutOfBounds if `found` is above `most`."""
    if found > most:
        raise OutOfBounds(field, found, most, setting, unit)


def describe(value: Any) -> str:
    """Return what a value is; text may be part of a prompt, and is not repeated."""
    if isinstance(value, str | list | dict):
        kind = {str: "a string", list: "a list", dict: "an object"}[type(value)]
        return f"{kind} of {len(value)}"
    return str(value).lower()


def _bound(field: str, value: int, low: int, high: int, setting: str) -> None:
    if not low <= value <= high:
        raise OutOfBounds(field, value, low if value < low else high, setting)
