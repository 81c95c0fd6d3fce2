"""Validation errors of pydantic as sentences: the problem, the value, and what to write instead."""

import datetime
import difflib
import math
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import UnionType

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from qwenfleet.cluster.config.yaml_lines import Loc, spell, within
from qwenfleet.cluster.errors import ConfigError


@dataclass(frozen=True)
class Spot:
    """The place of a value in the user's words: its name and, in a file, its line."""

    name: str
    file: str | None = None
    line: int | None = None


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "invalid-json-value": "text, a number, a list or a mapping",
}

_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def explain(
    error: ValidationError, tree: type[BaseModel], spot_of: Callable[[Loc], Spot]
) -> ConfigError:
    """Return all findings as one error: the first one, with the rest in `others`."""
    found: dict[str, ConfigError] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # pydantic counts only valid entries; the invalid one has its own finding
        detail["loc"] = _plain(detail["loc"])
        loc = (*detail["loc"], *detail.get("ctx", {}).get("at", ()))
        spot = spot_of(loc)
        problem, remedy = _sentence(detail, tree, spot)
        one = ConfigError(problem, remedy, spot.file, spot.line, spell(loc))
        found.setdefault(str(one), one)
    first, *others = found.values()
    return ConfigError(
        first.problem, first.remedy, first.file, first.line, first.key, tuple(others)
    )


def _sentence(detail: ErrorDetails, tree: type[BaseModel], spot: Spot) -> tuple[str, str]:
    kind, value, loc = detail["type"], detail["input"], detail["loc"]
    context = detail.get("ctx", {})
    if kind == "rule":  # from `refuse`, already in words
        return context["problem"], context["remedy"]
    if kind == "extra_forbidden":
        return _unknown_key(str(loc[-1]), loc[:-1], tree)
    if kind == "missing":
        return f"{spell(loc[:-1])} has no '{loc[-1]}'", f"Add it: {_description(tree, loc)}"
    if loc[:1] == ("auth",):  # before any branch that shows the value
        hidden = f"{spot.name} is wrong; its value is hidden because it might be a key"
        return hidden, f"Expected: {_description(tree, loc)}"
    if kind in _WANTED:
        wanted = _WANTED[kind]
        return f"{spot.name} is {_describe(value)}, not {wanted}", _remedy(wanted, value)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{spot.name} {value} is out of range", f"Set it to {words} {context[key]:.10g}."
    if kind == "literal_error":
        return f"{spot.name} is {_describe(value)}", f"Write {context['expected']}."
    if kind in ("too_short", "string_too_short"):
        return f"{spot.name} is empty", f"Expected: {_description(tree, loc)}"
    return f"{spot.name} {value!r} is not allowed", f"Expected: {_description(tree, loc)}"


def _remedy(wanted: str, value: object) -> str:
    if value is None:
        return f"Write {wanted}, or remove the key."
    if wanted == "text" and not isinstance(value, list | dict):
        return "Put it in quotes."
    if "number" in wanted and isinstance(value, str) and _is_number(value):
        return "Write it in digits and without quotes; YAML reads 1e3 as text."
    return f"Write {wanted}."


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _plain(loc: Loc) -> Loc:
    """Return `loc` without the tags that pydantic adds after `auth`, and after each key inside a
    `JsonValue`."""
    if loc[:1] == ("auth",):
        return loc[:1] + loc[2:]
    if "engine_args" not in loc:
        return loc
    inside = loc.index("engine_args") + 1
    return loc[:inside] + loc[inside::2]


def _unknown_key(key: str, place: Loc, tree: type[BaseModel]) -> tuple[str, str]:
    section = _section(tree, place)
    known = list(section.model_fields) if section else []
    near = difflib.get_close_matches(key, known, n=1)
    remedy = f"Did you mean '{near[0]}'?" if near else f"Known keys are {', '.join(known)}."
    return f"unknown key '{key}' {within(place)}", remedy


def _describe(value: object) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return f"{str(value).lower()} (YAML reads yes, no, on and off as true or false)"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text '{value}'"
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping of keys to values"
        case datetime.date():
            return f"the date {value}"
    return f"a {type(value).__name__}"


def _description(tree: type[BaseModel], loc: Loc) -> str:
    """Return the description of the field at `loc`, or of the nearest field around it."""
    for end in range(len(loc), 0, -1):
        section = _section(tree, loc[: end - 1])
        info: FieldInfo | None = section.model_fields.get(str(loc[end - 1])) if section else None
        if info is not None and info.description:
            return info.description
    return "see the documentation of the configuration."


def _section(tree: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """Return the model at `loc`, or None if the tree has none there."""
    annotation: object = tree
    for part in loc:
        if isinstance(part, str):
            section = next(_models(annotation), None)
            if section is None or part not in section.model_fields:
                return None
            annotation = section.model_fields[part].annotation
    return next(_models(annotation), None)


_HOLDERS = (UnionType, typing.Union, typing.Annotated, tuple)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models inside a type such as `tuple[Model, ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in _HOLDERS:
        for argument in typing.get_args(annotation):
            yield from _models(argument)
