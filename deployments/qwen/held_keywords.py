"""Held keywords: which words of a JSON schema xgrammar (0.2.8) holds."""

from __future__ import annotations

from typing import Final

FORMATS: Final = frozenset(
    (
        *("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"),
        *("uri", "uri-reference", "uri-template", "json-pointer", "relative-json-pointer"),
    )
)
KEYWORDS: Final = {
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("propertyNames", "minProperties", "maxProperties", "unevaluatedProperties"),
    ),
}
TYPES: Final = frozenset((*KEYWORDS, "integer", "boolean", "null"))
NEVER: Final = (
    *("not", "if", "dependentRequired", "dependentSchemas", "dependencies", "contains"),
    *("minContains", "maxContains", "unevaluatedItems", "$dynamicRef", "$recursiveRef"),
)
NAMING: Final = frozenset(("pattern", "minLength", "maxLength", "enum", "type", "description"))
"""Keywords about names of properties."""
