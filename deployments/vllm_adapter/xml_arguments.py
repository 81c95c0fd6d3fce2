"""XML arguments: the part of a grammar that holds a call's parameters in Qwen3-Coder's form.

    <parameter=KEY>
    VALUE
    </parameter>

Each parameter is put together of a structural tag's formats. With Qwen3's vocabulary xgrammar's own
(`qwen_xml`) takes 0.06 to 0.1 s for single tokens, where blanks and the begin of a value overlap,
and 7 s to compile a text of 1,000 characters at most, where `any_text` takes 0.3 s; it also lets a
bounded text write the tag that ends it.

xgrammar 0.2.8 internals used here: the formats of structural tags; `qwen_xml` for strings alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from xgrammar.structural_tag import (
    AnyTextFormat,
    ConstStringFormat,
    Format,
    JSONSchemaFormat,
    OptionalFormat,
    OrFormat,
    RegexFormat,
    RepeatFormat,
    SequenceFormat,
)

from qwenfleet.deployments.qwen.held_pattern import TextPart, text_parts

END_PARAMETER: Final = "</parameter>"
END: Final = f"{END_PARAMETER}\n"
NAME: Final = r"[^<>\r\n]+"
"""A parameter that is not declared."""
MOST_OTHERS: Final = 256
"""Parameters that are not declared. Without a bound, a tag's content must have an end that no value
may contain."""
MOST_BLANKS: Final = 2
"""Whitespace between two parts of a value in JSON."""
MOST_PARTS: Final = 20_000
"""Schemas and choices in one tool's grammar, with those that are written more than once."""

Schema = Mapping[str, Any]
ANY: Final[dict[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": True}


def arguments_of(schema: Any) -> Format:
    """Return the format of all parameters of a call, for a schema from `what_holds` within
    PARAMETERS; a boolean means any."""
    node = schema if isinstance(schema, dict) else ANY
    return _Composer(node.get("$defs", {})).arguments(node, frozenset())


def _sequence(*formats: Format) -> Format:
    return SequenceFormat(elements=list(formats))


def _any_of(formats: list[Format]) -> Format:
    return formats[0] if len(formats) == 1 else OrFormat(elements=formats)


def _const(text: str) -> Format:
    return ConstStringFormat(value=text)


def _text(most: int | None = None) -> Format:
    return AnyTextFormat(excludes=[END_PARAMETER], max_chars=most)


class _Composer:
    """Composes the formats of one tool."""

    def __init__(self, definitions: Schema) -> None:
        self._definitions = definitions
        self._left = MOST_PARTS
        self._uses: dict[str, tuple[int, frozenset[str]]] = {}

    def arguments(self, node: Schema, seen: frozenset[str]) -> Format:
        """All parameters, in the schema's order."""
        name = _name(node)
        if name is not None:
            target = self._definitions.get(name)
            if not isinstance(target, dict) or name in seen:
                return self.arguments(ANY, seen)
            return self.arguments(target, seen | {name})
        if "anyOf" in node:
            branches = [each if isinstance(each, dict) else ANY for each in node["anyOf"]]
            return _any_of([self.arguments(each, seen) for each in branches])
        required = node.get("required", ())
        formats: list[Format] = []
        for key, schema in node.get("properties", {}).items():
            found = self._parameter(_const(key), schema)
            formats.append(found if key in required else OptionalFormat(content=found))
        others = node.get("additionalProperties", False)
        if others is not False:
            other = self._parameter(RegexFormat(pattern=NAME), others)
            formats.append(RepeatFormat(min=0, max=MOST_OTHERS, content=other))
        return _sequence(*formats) if formats else _const("")

    def _parameter(self, key: Format, schema: Any) -> Format:
        values = self._values(schema, frozenset())
        return _sequence(_const("<parameter="), key, _const(">\n"), _any_of(values))

    def _values(self, schema: Any, seen: frozenset[str]) -> list[Format]:
        """The forms of a value, with the tag that ends it."""
        self._left -= 1
        any_text = [_sequence(_text(), _const(END))]
        if not isinstance(schema, dict) or self._left < 0:
            return any_text
        name = _name(schema)
        if name is not None:
            target = self._definitions.get(name)
            return any_text if name in seen else self._values(target, seen | {name})
        if "anyOf" in schema:
            found = [form for each in schema["anyOf"] for form in self._values(each, seen)]
            return any_text if any_text[0] in found else found
        if "enum" in schema or "const" in schema:
            return self._choices(schema["enum"] if "enum" in schema else [schema["const"]])
        types = schema.get("type", [])
        if isinstance(types, list):
            each_typed = [{**schema, "type": each} for each in types]
            return [form for each in each_typed for form in self._values(each, seen)] or any_text
        return _strings(schema) if types == "string" else [self._json(schema)]

    def _choices(self, choices: list[Any]) -> list[Format]:
        self._left -= len(choices)
        found = [_const(f"{each}\n{END}") for each in choices if isinstance(each, str)]
        others = [each for each in choices if not isinstance(each, str)]
        return [*found, *([self._json({"enum": others})] if others else [])]

    def _json(self, schema: Schema) -> Format:
        """A value in JSON, with the definitions that it uses."""
        names = self._reach(schema)
        if self._left < 0:
            return _sequence(_text(), _const(END))
        definitions = {name: self._definitions[name] for name in sorted(names)}
        node = {**schema, "$defs": definitions} if definitions else dict(schema)
        value = JSONSchemaFormat(json_schema=node, max_whitespace_cnt=MOST_BLANKS)
        return _sequence(value, _const(f"\n{END}"))

    def _reach(self, schema: Schema) -> set[str]:
        found: set[str] = set()
        waiting = list(_used(schema)[1])
        while waiting and self._left >= 0:
            name = waiting.pop()
            if name in found or name not in self._definitions:
                continue
            found.add(name)
            if name not in self._uses:
                self._uses[name] = _used(self._definitions[name])
            size, names = self._uses[name]
            self._left -= size
            waiting += names
        return found


def _strings(schema: Schema) -> list[Format]:
    """A text that is written as it is."""
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if "pattern" in schema:
        return [_matching(part) for part in text_parts(schema["pattern"], least, most)]
    if "format" in schema:
        value = JSONSchemaFormat(json_schema=dict(schema), style="qwen_xml")
        return [_sequence(value, _const(f"\n{END}"))]
    if not least and most is None:
        return [_sequence(_text(), _const(END))]
    ending = [OptionalFormat(content=_const("\n")), _const(END)]
    if not least:
        return [_sequence(_text(most), *ending)]
    rest = _text(None if most is None else max(most - least, 0))
    return [_sequence(RegexFormat(pattern=each), rest, *ending) for each in _begins(least)]


def _begins(least: int) -> list[str]:
    """The begin of a text of so many characters, but for a line break at the start: an empty text
    ends with one. `<` begins a tag, unless something else follows; a text that has it early may be
    shorter."""
    if least == 1:
        return [r"[^<\n]", "<[^/]"]
    before = "" if least == 2 else f"[^<]{{0,{least - 2}}}"
    return [rf"[^<\n][^<]{{{least - 1}}}", "<[^/]", rf"[^<\n]{before}<[^/]"]


def _matching(part: TextPart) -> Format:
    formats: list[Format] = [_text()] if part.is_open_before else []
    if part.expression:
        formats.append(RegexFormat(pattern=part.expression))
    if part.is_open_after:
        return _sequence(*formats, _text(), _const(END))
    return _sequence(*formats, _const(f"\n{END}"))


def _name(node: Schema) -> str | None:
    """The definition that a schema points to."""
    reference = node.get("$ref")
    return reference.rpartition("/")[2] if isinstance(reference, str) else None


def _used(schema: Any) -> tuple[int, frozenset[str]]:
    """How many values a schema has, and the definitions that it points to."""
    found: set[str] = set()
    waiting, size = [schema], 0
    while waiting:
        node = waiting.pop()
        size += 1
        if isinstance(node, dict):
            name = _name(node)
            found |= set() if name is None else {name}
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return size, frozenset(found)
