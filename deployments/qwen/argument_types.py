"""Argument types: the JSON of an argument that a model wrote as text, by its schema.

A schema is what a client sent, so it may be any JSON. Where it does not say what an argument is,
the argument is the string that the model wrote; so it is where the text does not fit.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

MOST_PARTS: Final = 256
"""Schemas that one may refer to or combine; the rest counts as absent."""
MOST_DEPTH: Final = 16
"""Levels of a value whose strings are read by their schemas."""
MOST_LITERAL: Final = 20_000
"""Characters that are read as a Python literal: Python's own parser takes 1 ms for 10 kB."""

MOST_DIGITS: Final = 300
"""A longer integer is a string: Python's json reads 4,300 digits, other clients fewer."""
UNION_CHARS: Final = 64
"""Where a string would do too, a longer text is a string."""
STRING: Final = frozenset({"string"})
SCALARS: Final = ("null", "boolean", "integer", "number")
CONTAINERS: Final = ("array", "object")
_TYPES: Final = frozenset((*SCALARS, *CONTAINERS, "string"))

# Possessive, as a text that fits almost would otherwise be read once for each of its digits.
_INTEGER: Final = re.compile(r"([+-]?)([0-9]++)(?:\.0*+)?")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?")
_JSON_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BOOLEANS: Final = {"true": "true", "True": "true", "false": "false", "False": "false"}


class Schema:
    """The schema of one value, inside that of a tool's parameters, where its references point."""

    __slots__ = ("_items", "_members", "_parts", "_root", "_written", "is_text", "types")

    def __init__(self, node: Any, root: Any) -> None:
        self._root = root
        self._parts = _parts(node, root)
        self._members: dict[str, Schema] = {}
        self._items: Schema | None = None
        self._written: dict[str, Any] | None = None
        self.types = _types(node, root, set()) or STRING
        self.is_text = self.types == STRING and not any(True for _ in self.choices)
        """Whether every text is its own value, so that it need not be complete to be written."""

    @property
    def choices(self) -> Iterator[Any]:
        """The values that are allowed; none if the schema does not list them."""
        for part in self._parts:
            yield from ([part["const"]] if "const" in part else ())
            yield from _list(part, "enum")

    @property
    def written(self) -> Mapping[str, Any]:
        """The choices by the texts that mean them."""
        if self._written is None:
            self._written = {}
            for choice in self.choices:
                for text in _written(choice):
                    self._written.setdefault(text, choice)
        return self._written

    def declares(self, name: str) -> bool:
        """Whether this object has such a member."""
        return any(name in _dict(part, "properties") for part in self._parts)

    def member(self, name: str) -> Schema:
        """The schema of a member of this object, or an empty one."""
        if name not in self._members:
            declared = (_dict(part, "properties") for part in self._parts)
            nodes = [properties[name] for properties in declared if name in properties]
            nodes += filter(None, (_dict(part, "additionalProperties") for part in self._parts))
            self._members[name] = Schema(nodes[0] if nodes else None, self._root)
        return self._members[name]

    @property
    def items(self) -> Schema:
        """The schema of the entries of this array, or an empty one."""
        if self._items is None:
            found = (part["items"] for part in self._parts if isinstance(part.get("items"), dict))
            self._items = Schema(next(found, None), self._root)
        return self._items


def to_json(text: str, schema: Schema) -> str:
    """Return the JSON of an argument."""
    choice = text.strip()
    if choice in schema.written:
        return dumps(schema.written[choice])
    has_string = "string" in schema.types
    for kind in (*SCALARS, *CONTAINERS):
        if kind not in schema.types:
            continue
        found = _scalar(text, kind) if kind in SCALARS else _container(text, kind, schema)
        if found is None:
            continue
        if not has_string or kind in CONTAINERS or _is_same(text, found):
            return found
    return dumps(text)


def dumps(value: Any) -> str:
    """Return a value as JSON that can be sent in UTF-8."""
    found = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        found.encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a \\ud800 in the model's JSON
        return json.dumps(value, allow_nan=False)
    return found


def _scalar(text: str, kind: str) -> str | None:
    text = text.strip()
    if kind == "null":
        return "null" if text in ("null", "None") else None
    if kind == "boolean":
        return _BOOLEANS.get(text.lower())
    if kind == "integer":
        found = _INTEGER.fullmatch(text)
        if found is None or len(text) > MOST_DIGITS:
            return None
        return found[1].strip("+") + (found[2].lstrip("0") or "0")
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        return None
    return text if _JSON_NUMBER.fullmatch(text) else repr(float(text))


def _is_same(text: str, found: str) -> bool:
    """Whether nothing is lost if the text is not kept as a string."""
    if found == "null" or text in _BOOLEANS:
        return True
    return text == found and len(text) <= UNION_CHARS and str(json.loads(found)) == text


def _container(text: str, kind: str, schema: Schema) -> str | None:
    wanted: type = list if kind == "array" else dict
    try:
        value = json.loads(text, parse_constant=_refuse, strict=False)
    except (ValueError, RecursionError):
        value = _literal(text)
    if not isinstance(value, wanted):
        return None
    try:
        return dumps(_coerced(value, schema, MOST_DEPTH))
    except (TypeError, ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _literal(text: str) -> Any:
    """Return a Python list or dictionary, as templates write them with `str`, or None."""
    if len(text) > MOST_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return list(value) if isinstance(value, tuple) else value


def _coerced(value: Any, schema: Schema, depth: int) -> Any:
    """Return a value with the strings in it as their schemas say."""
    if depth and isinstance(value, list | tuple):
        entries = schema.items
        return [_coerced(each, entries, depth - 1) for each in value]
    if depth and isinstance(value, dict):
        return {
            name: _coerced(each, schema.member(str(name)), depth - 1)
            for name, each in value.items()
        }
    if isinstance(value, str) and "string" not in schema.types:
        return json.loads(to_json(value, schema))
    return value


def _written(value: Any) -> tuple[str, ...]:
    """Return the texts that mean a value: templates write a string as it is, others with `str`."""
    if isinstance(value, str):
        return (value, value.strip())
    try:
        return (json.dumps(value, allow_nan=False), str(value))
    except (TypeError, ValueError, RecursionError):
        return ()


def _types(node: Any, root: Any, seen: set[int]) -> frozenset[str] | None:
    """Return the types that a schema allows; None if it does not say. Looks at each part once."""
    if not isinstance(node, dict) or len(seen) > MOST_PARTS:
        return None
    if id(node) in seen:
        return frozenset()  # they count where it was seen
    seen.add(id(node))
    named = node.get("type")
    if named is not None:
        names = named if isinstance(named, list) else [named]
        found = frozenset(name for name in names if isinstance(name, str)) & _TYPES
        return _nullable(node, found) if found else None
    target = _target(node, root)
    if target is not None:
        return _types(target, root, seen)
    if "const" in node:
        return frozenset({_type_of(node["const"])})
    if _list(node, "enum"):
        return frozenset(map(_type_of, node["enum"]))
    for branches in (_list(node, "anyOf"), _list(node, "oneOf")):
        if branches:
            each = [_types(branch, root, seen) for branch in branches[:MOST_PARTS]]
            types = frozenset().union(*(STRING if one is None else one for one in each))
            return _nullable(node, types)
    for branch in _list(node, "allOf")[:MOST_PARTS]:
        of_branch = _types(branch, root, seen)
        if of_branch:
            return _nullable(node, of_branch)
    return _implied(node)


def _implied(node: Mapping[str, Any]) -> frozenset[str] | None:
    if "properties" in node or "additionalProperties" in node:
        return frozenset({"object"})
    if "items" in node or "prefixItems" in node:
        return frozenset({"array"})
    return None


def _nullable(node: Mapping[str, Any], found: frozenset[str]) -> frozenset[str]:
    """OpenAPI's way to allow null."""
    return found | {"null"} if node.get("nullable") is True else found


def _parts(node: Any, root: Any) -> tuple[Mapping[str, Any], ...]:
    """Return a schema and those that it refers to or combines, each once."""
    found: dict[int, Mapping[str, Any]] = {}
    queue = deque([node])
    while queue and len(found) <= MOST_PARTS:
        part = queue.popleft()
        if not isinstance(part, dict) or id(part) in found:
            continue
        found[id(part)] = part
        queue.append(_target(part, root))
        for name in ("anyOf", "oneOf", "allOf"):
            queue += _list(part, name)[:MOST_PARTS]
    return tuple(found.values())


def _list(node: Mapping[str, Any], name: str) -> list[Any]:
    found = node.get(name)
    return found if isinstance(found, list) else []


def _dict(node: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = node.get(name)
    return found if isinstance(found, dict) else {}


def _target(node: Mapping[str, Any], root: Any) -> Any:
    """Return what a reference inside the same schema points to; None for all others."""
    reference = node.get("$ref")
    if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
        return None
    found = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or step not in found:
            return None
        found = found[step]
    return found


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "string"
