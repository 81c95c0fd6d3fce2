"""Schema reference: what a `$ref` of a JSON schema points to."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote


def target_of(reference: Any, root: Any) -> Any:
    """Return the schema that a reference inside the same one points to; None for all others."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    found = root
    for step in reference[2:].split("/") if reference != "#" else ():
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        elif isinstance(found, dict) and step in found:
            found = found[step]
        else:
            return None
    return found if isinstance(found, dict) or found is True else None
