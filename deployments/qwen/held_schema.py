"""Held schema: a JSON schema without what a grammar of xgrammar (0.2.8) cannot hold.

xgrammar raises on much of JSON schema, and takes the whole request with it: on `minContains`, which
it takes for `minItems`, on a list as `items`, on bounds that exclude each other, on a type or an
entry that is not a schema, on a reference to nothing. It ignores as much without a word: `not`,
`if`, `contains`, `uniqueItems`, `dependentRequired`, bounds of a length next to a pattern, whatever
stands next to `$ref`, `enum` or `anyOf`, all of an `allOf` with more than one entry, a required
property that is not declared. So a schema is written anew with what it holds, and every reference
points into one `$defs`.

A bound of the length of a string is held as far as it compiles in time. As with xgrammar, an object
with properties has no others unless `additionalProperties` says so, and `oneOf` is `anyOf`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any, Final

from qwenfleet.deployments.qwen.held_bounds import MOST_COUNT, Bounds, counts, numbers
from qwenfleet.deployments.qwen.held_keywords import FORMATS, KEYWORDS, NAMING, NEVER, TYPES
from qwenfleet.deployments.qwen.held_pattern import held_pattern, text_parts
from qwenfleet.deployments.qwen.pattern_reader import Unheld
from qwenfleet.deployments.qwen.schema_reference import target_of

MOST_VALUES: Final = 20_000
"""Schemas in one that is written anew; references may repeat parts of it."""
MOST_PATTERN_CHARS: Final = 32_768
"""Characters of all patterns of a schema."""
MOST_DEPTH: Final = 64
MOST_REPORTED: Final = 8
SHOWN: Final = 64
MOST_LEAST: Final = 4
MOST_LENGTH: Final = 16
"""Bounds of the length of a string; larger ones are left out, and refuse no strict tool. With
Qwen3's vocabulary a `maxLength` in JSON of 16 takes 0.4 s to compile, of 100 takes 3.7 s and of
1,000 takes 7.7 s; a `minLength` of 4 in a text takes 0.7 s (xgrammar 0.2.8). A text may have any
`maxLength`, for 0.3 s."""
MEMBERS: Final = ("patternProperties", "propertyNames", "minProperties", "maxProperties")
"""Keywords that parameters in XML cannot be held to."""

Schema = dict[str, Any]


class Within(IntEnum):
    """How what a schema describes is written."""

    JSON = 0
    VALUE = 1
    """As the text of an XML parameter; what is inside of it is JSON. Strings keep their patterns as
    they are, for `text_parts`."""
    PARAMETERS = 2
    """As XML parameters."""

    @property
    def inner(self) -> Within:
        return Within(max(self - 1, 0))


def what_holds(schema: Any, within: Within = Within.JSON) -> Any:
    """Return a schema that xgrammar holds and that allows what this one allows."""
    return _Writer(schema).whole(within)


def unknown_in(schema: Any, within: Within = Within.JSON) -> list[str]:
    """Return where the schema has what cannot be held, and what; the first few."""
    writer = _Writer(schema)
    writer.whole(within)
    return list(dict.fromkeys(writer.unknown))[:MOST_REPORTED]


class _Writer:
    """Writes one schema anew."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = MOST_VALUES
        self._pattern_chars = MOST_PATTERN_CHARS
        self._names: dict[tuple[int, Within], str] = {}
        """What references point to, by its name in the new `$defs`."""
        self._waiting: list[tuple[str, Any, str, Within]] = []
        self.unknown: list[str] = []

    def whole(self, within: Within) -> Any:
        found = self._schema(self._root, "", within, 0)
        definitions: Schema = {}
        while self._waiting:
            name, target, path, inside = self._waiting.pop()
            definitions[name] = self._schema(target, path, inside, 0)
        if definitions and isinstance(found, dict):
            found["$defs"] = definitions
        return found

    def _report(self, path: str, key: str = "", value: Any = None) -> None:
        if len(self.unknown) < MOST_REPORTED:
            place = ".".join(part for part in (path, key) if part) or "the schema"
            shown = isinstance(value, (str, int, float)) and not isinstance(value, bool)
            self.unknown.append(_shown(place, 200) + (f" '{_shown(str(value))}'" if shown else ""))

    def _schema(self, node: Any, path: str, within: Within, depth: int) -> Any:
        self._left -= 1
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict) or self._left < 0 or depth > MOST_DEPTH:
            self._report(path)
            return True
        for key in NEVER:
            if node.get(key, True) is not True:
                self._report(path, key, node[key])
        if node.get("uniqueItems") is True:
            self._report(path, "uniqueItems")
        found = self._form(node, path, within, depth)
        if node.get("nullable") is True and isinstance(found, dict):
            return {"anyOf": [found, {"type": "null"}]}
        return found

    def _form(self, node: Schema, path: str, within: Within, depth: int) -> Any:
        """Write what xgrammar looks at first, and report what it then ignores."""
        own = [key for keys in KEYWORDS.values() for key in keys if key in node]
        kind = next((key for key in ("$ref", "const", "enum") if key in node), None)
        if kind == "$ref":
            for key in (*own, "anyOf", "oneOf", "allOf"):
                if key in node:
                    self._report(path, key, node[key])
            return self._reference(node, path, within)
        if kind is not None:
            return self._values(node, kind, path, within)
        found = None
        for key in ("anyOf", "oneOf", "allOf"):
            if key not in node:
                continue
            if own or found is not None:
                self._report(path, key)
            else:
                found = self._combined(node, key, path, within, depth)
        return self._typed(node, path, within, depth) if found is None else found

    def _reference(self, node: Schema, path: str, within: Within) -> Any:
        reference, seen = node["$ref"], 0
        target = target_of(reference, self._root)
        while isinstance(target, dict) and "$ref" in target and seen < MOST_DEPTH:
            reference, seen = target["$ref"], seen + 1
            target = target_of(reference, self._root)
        if target is None or seen == MOST_DEPTH:
            self._report(path, "$ref", node["$ref"])
            return self._anything(within)
        key = (id(target), within)
        if key not in self._names:
            self._names[key] = f"r{len(self._names)}"
            place = "" if reference == "#" else reference[2:].replace("/", ".")
            self._waiting.append((self._names[key], target, place, within))
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def _values(self, node: Schema, kind: str, path: str, within: Within) -> Any:
        if within is Within.PARAMETERS or (
            kind == "enum" and not (isinstance(node[kind], list) and node[kind])
        ):
            self._report(path, kind)
            return self._anything(within)
        return {kind: node[kind]}

    def _anything(self, within: Within) -> Any:
        if within is not Within.PARAMETERS:
            return True
        return {"type": "object", "properties": {}, "additionalProperties": True}

    def _combined(self, node: Schema, key: str, path: str, within: Within, depth: int) -> Any:
        """Write alternatives, or the only entry of an `allOf`. None if there is nothing to hold."""
        entries = node[key]
        if not isinstance(entries, list) or not entries or (key == "allOf" and len(entries) > 1):
            self._report(path, key)
            return None
        typed = {"type": node["type"]} if "type" in node else {}
        written = []
        for index, entry in enumerate(entries):
            if isinstance(entry, dict) and not {"$ref", "const", "enum"} & entry.keys():
                entry = {**typed, **entry}
            place = f"{path}.{key}.{index}".lstrip(".")
            found = self._schema(entry, place, within, depth + 1)
            if found is not False:
                written.append(found)
        if not written:
            self._report(path, key)
            return None
        return written[0] if len(written) == 1 else {"anyOf": written}

    def _typed(self, node: Schema, path: str, within: Within, depth: int) -> Any:
        types = self._types(node, path)
        if within is Within.PARAMETERS:
            if types and "object" not in types:
                self._report(path, "type")
            if not types or "object" not in types:
                return self._anything(within)
            types = ["object"]
        if not types:
            return True
        found: Schema = {"type": types[0] if len(types) == 1 else types}
        write: dict[str, Callable[[], Schema]] = {
            "string": lambda: self._string(node, path, within),
            "number": lambda: self._bounds(
                numbers(node, is_integer="number" not in types), node, path
            ),
            "array": lambda: self._array(node, path, within, depth),
            "object": lambda: self._object(node, path, within, depth),
        }
        for kind in dict.fromkeys("number" if name == "integer" else name for name in types):
            if kind in write:
                found |= write[kind]()
        return found

    def _types(self, node: Schema, path: str) -> list[str]:
        """The types that a schema names, or the one that its keywords are about."""
        named = node.get("type")
        if "type" not in node or named == []:
            about = [kind for kind, keys in KEYWORDS.items() if any(key in node for key in keys)]
            if len(about) > 1:
                self._report(path, "type")
            return about if len(about) == 1 else []
        names = named if isinstance(named, list) else [named]
        if any(not isinstance(name, str) or name not in TYPES for name in names):
            self._report(path, "type", named)
            return []
        return [name for name in dict.fromkeys(names) if name != "integer" or "number" not in names]

    # What each type may have.

    def _string(self, node: Schema, path: str, within: Within) -> Schema:
        bounds = self._bounds(counts(node, "minLength", "maxLength"), node, path)
        least, most = bounds.get("minLength", 0), bounds.get("maxLength")
        pattern, form = node.get("pattern"), node.get("format")
        if pattern is not None:
            try:
                found = self._pattern(pattern, within)
                with suppress(Unheld):
                    whole = held_pattern(pattern, least, most)
                    return {"pattern": whole} if within is Within.JSON else {**found, **bounds}
                for key in bounds:
                    self._report(path, key, node[key])
                return found
            except Unheld:
                self._report(path, "pattern", pattern)
        if isinstance(form, str) and form in FORMATS:
            for key in bounds:
                self._report(path, key, node[key])
            return {"format": form}
        limits = {"minLength": MOST_LEAST}
        limits |= {"maxLength": MOST_LENGTH} if within is Within.JSON else {}
        return {key: bound for key, bound in bounds.items() if bound <= limits.get(key, bound)}

    def _pattern(self, pattern: Any, within: Within) -> Schema:
        self._pattern_chars -= len(pattern) if isinstance(pattern, str) else 0
        if not isinstance(pattern, str) or self._pattern_chars < 0:
            raise Unheld("it is not a string, or there are too many")
        whole = held_pattern(pattern)
        if within is not Within.JSON:
            text_parts(pattern)
        return {"pattern": whole if within is Within.JSON else pattern}

    def _bounds(self, bounds: Bounds, node: Schema, path: str) -> Schema:
        for key in bounds.unknown:
            self._report(path, key, node.get(key))
        return bounds.held

    def _array(self, node: Schema, path: str, within: Within, depth: int) -> Schema:
        found: Schema = {}
        items, starts = node.get("items", True), node.get("prefixItems", [])
        if isinstance(items, list):  # as older drafts have it
            starts, items = items, node.get("additionalItems", True)
        if not isinstance(starts, list):
            self._report(path, "prefixItems")
        elif starts:
            place = f"{path}.prefixItems".lstrip(".")
            written = [
                self._schema(each, f"{place}.{index}", Within.JSON, depth + 1)
                for index, each in enumerate(starts)
            ]
            found["prefixItems"] = [each if isinstance(each, dict) else {} for each in written]
        found["items"] = self._schema(items, f"{path}.items".lstrip("."), Within.JSON, depth + 1)
        room = len(found.get("prefixItems", ())) if found["items"] is False else MOST_COUNT
        return found | self._bounds(counts(node, "minItems", "maxItems", room), node, path)

    def _object(self, node: Schema, path: str, within: Within, depth: int) -> Schema:
        if within is Within.PARAMETERS:
            node = self._without_members(node, path)
        found = self._properties(node, path, within, depth)
        others = node.get("additionalProperties", node.get("unevaluatedProperties"))
        if others is not None:
            place = f"{path}.additionalProperties".lstrip(".")
            others = self._schema(others, place, within.inner, depth + 1)
        patterns, is_whole = self._patterns(node, path, within, depth)
        if patterns:
            found["patternProperties"] = patterns
        is_bare = others is None and not patterns and "properties" not in node
        if is_bare or (not is_whole and not others):
            others = True
        self._require(node, found, path, others)
        if others is not None:
            found["additionalProperties"] = others
        if others and not patterns:
            self._name(node, found, path, within, depth)
        elif patterns and "propertyNames" in node:
            self._report(path, "propertyNames")
        room = MOST_COUNT if others or patterns else len(found["properties"])
        limits = self._bounds(counts(node, "minProperties", "maxProperties", room), node, path)
        if limits.get("maxProperties", MOST_COUNT) < len(found.get("required", ())):
            self._report(path, "maxProperties", limits.pop("maxProperties"))
        return found | limits

    def _without_members(self, node: Schema, path: str) -> Schema:
        for key in MEMBERS:
            if key in node:
                self._report(path, key)
        found = {key: value for key, value in node.items() if key not in MEMBERS}
        if node.get("patternProperties"):
            found["additionalProperties"] = True
        return found

    def _properties(self, node: Schema, path: str, within: Within, depth: int) -> Schema:
        named = node.get("properties", {})
        if not isinstance(named, dict):
            self._report(path, "properties")
            named = {}
        place = f"{path}.properties".lstrip(".")
        written = {
            name: self._schema(each, f"{place}.{name}", within.inner, depth + 1)
            for name, each in named.items()
        }
        return {"properties": {name: each for name, each in written.items() if each is not False}}

    def _patterns(self, node: Schema, path: str, within: Within, depth: int) -> tuple[Schema, bool]:
        """Write the schemas by patterns of names, and whether these are all."""
        found: Schema = {}
        named = node.get("patternProperties", {})
        if not isinstance(named, dict):
            self._report(path, "patternProperties")
            return {}, True
        for pattern, each in named.items():
            place = f"{path}.patternProperties".lstrip(".")
            try:
                written = self._pattern(pattern, Within.JSON)["pattern"]
            except Unheld:
                self._report(place, "", pattern)
                continue
            schema = self._schema(each, f"{place}.{_shown(pattern)}", within.inner, depth + 1)
            if schema is False:
                self._report(place, "", pattern)
            else:
                found[written] = schema
        return found, len(found) == len(named)

    def _require(self, node: Schema, found: Schema, path: str, others: Any) -> None:
        """Require what is required, and declare it: xgrammar forgets it otherwise."""
        names = node.get("required", [])
        if not isinstance(names, list) or any(not isinstance(name, str) for name in names):
            self._report(path, "required")
            return
        properties = found["properties"]
        for name in names:
            if name in properties:
                continue
            if others is False or name in (node.get("properties") or ()):
                self._report(path, "required", name)
            else:
                properties[name] = True if others is None else others
        required = [name for name in dict.fromkeys(names) if name in properties]
        if required:
            found["required"] = required

    def _name(self, node: Schema, found: Schema, path: str, within: Within, depth: int) -> None:
        names = node.get("propertyNames")
        held: Any = None
        if isinstance(names, dict):
            place = f"{path}.propertyNames".lstrip(".")
            for key in names.keys() - NAMING:
                self._report(place, key)
            kept = {key: names[key] for key in NAMING if key in names}
            held = self._schema({**kept, "type": "string"}, place, within.inner, depth + 1)
            if isinstance(held, dict) and "enum" in held:
                held["enum"] = [name for name in held["enum"] if isinstance(name, str)]
        elif names is not None and names is not True:
            self._report(path, "propertyNames")
        if isinstance(held, dict) and held not in ({"type": "string"}, {"enum": []}):
            found["propertyNames"] = held


def _shown(text: str, most: int = SHOWN) -> str:
    """Return a client's text as a sentence may repeat it."""
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(char if char.isprintable() else "?" for char in short)
