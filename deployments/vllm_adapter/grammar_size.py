"""Grammar size: what of a schema or grammar can be counted before it is compiled. Pure.

The counts bound what follows: reading it, and the process that compiles it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from qwenfleet.cluster.config.grammar import GrammarConfig
from qwenfleet.deployments.ingress.grammar_errors import (
    GrammarInvalid,
    GrammarRefused,
    GrammarTooCostly,
)

LISTS_OF_CHOICES: Final = ("enum", "anyOf", "oneOf", "allOf", "elements", "tags", "triggers")
"""Keys of lists in JSON schemas and structural tags of which an answer takes one."""


class Kind(StrEnum):
    """What constrains an answer, in the words of a sentence for the client."""

    JSON = "JSON schema"
    REGEX = "regular expression"
    GRAMMAR = "grammar"
    STRUCTURAL_TAG = "set of tools or tags"
    CHOICE = "list of choices"


@dataclass(frozen=True)
class Size:
    """The counts of one constraint."""

    bytes: int
    properties: int = 0
    choices: int = 0


def measure(kind: Kind, text: str) -> Size:
    """Count without compiling. Raises GrammarInvalid for text that cannot be read."""
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise GrammarInvalid(kind, f"it is not Unicode text ({error.reason})") from error
    if kind in (Kind.JSON, Kind.STRUCTURAL_TAG):
        try:
            properties, choices = _count(json.loads(text))
        except RecursionError as error:
            raise GrammarInvalid(kind, "it is nested too deeply") from error
        except ValueError as error:
            raise GrammarInvalid(kind, f"it is not JSON ({error})") from error
        return Size(length, properties, choices)
    if kind is Kind.REGEX:
        return Size(length)
    return Size(length, choices=text.count("|") + 1)


def refusal(kind: Kind, size: Size, limits: GrammarConfig) -> GrammarRefused | None:
    """Return why a constraint of this size is refused; None if it may be compiled."""
    for count, unit, limit, setting in (
        (size.bytes, "bytes", limits.max_bytes, "max_bytes"),
        (size.properties, "properties", limits.max_properties, "max_properties"),
        (size.choices, "choices", limits.max_choices, "max_choices"),
    ):
        if count > limit:
            return GrammarTooCostly(
                kind, f"has {count} {unit}", str(limit), f"gateway.grammar.{setting}"
            )
    return None


def check(kind: Kind, text: str, limits: GrammarConfig) -> None:
    """Raise GrammarRefused for a constraint that is too large or is not JSON."""
    # A character has at least one byte: refuse before anything reads it.
    if len(text) > limits.max_bytes:
        found = refusal(kind, Size(len(text)), limits)
    else:
        found = refusal(kind, measure(kind, text), limits)
    if found is not None:
        raise found


def _count(value: Any) -> tuple[int, int]:
    """The properties and choices of a JSON schema or structural tag, at any depth."""
    properties = choices = 0
    rest = [value]
    while rest:
        node = rest.pop()
        if isinstance(node, list):
            rest += node
        elif isinstance(node, dict):
            own = node.get("properties")
            properties += len(own) if isinstance(own, dict) else 0
            lists = (node.get(key) for key in LISTS_OF_CHOICES)
            choices += sum(len(found) for found in lists if isinstance(found, list))
            rest += node.values()
    return properties, choices
