"""The field `fim` of a completion: what surrounds the file in which a middle is filled in. Pure.

    {"repository": NAME, "path": PATH, "files": [{"path": PATH, "text": TEXT}, ...]}

It is ours, not vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress.field_errors import NotTaken, WrongValue
from qwenfleet.deployments.ingress.rules import describe, items, text, whole

QUICK_BYTES: Final = 256 * 1024
"""Body of a quick request: editors send some 350 lines, and 16 pieces of 64 lines of other files
(llama.vim and llama.vscode)."""
QUICK_TOKENS: Final = 1024
"""Tokens that a quick request asks for; editors ask for 128."""
COMPLETION_TOKENS: Final = 16
"""Default of `max_tokens` in vLLM's completions."""
NAME: Final = text("option_chars")
AT_START: Final = "is_at_start"
"""Key of `fim`, between gateway and adapter only: nothing stands before the middle."""


def fim(field: str, value: Any, limits: LimitsConfig) -> None:
    """Allow the repository, the path of the file that is edited, and other files."""
    _known(field, value, ("repository", "path", "files"))
    for name in ("repository", "path"):
        string(f"{field}.{name}", value.get(name))
        NAME(f"{field}.{name}", value[name], limits)
    files = value.get("files")
    if files is None:
        return
    items("context_files")(f"{field}.files", files, limits)
    for index, file in enumerate(files):
        path = f"{field}.files[{index}]"
        _known(path, file, ("path", "text"))
        string(f"{path}.path", file.get("path"))
        NAME(f"{path}.path", file["path"], limits)
        string(f"{path}.text", file.get("text"))


def is_quick(fields: Mapping[str, Any], body_bytes: int) -> bool:
    """Whether this completion is one that an editor waits for: it fills in a middle, and is short.
    The rules have allowed its fields."""
    is_text = isinstance(fields.get("prompt"), str | None)
    if not _fills(fields) or not is_text or body_bytes > QUICK_BYTES:
        return False
    asked = fields.get("max_tokens")
    tokens = COMPLETION_TOKENS if asked is None else whole("max_tokens", asked)
    answers = whole("n", fields.get("n") or 1)
    return tokens * answers <= QUICK_TOKENS


def at_start(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a completion whose cursor is at the start of its file as vLLM takes it, which refuses
    an empty prompt (0.32); None if the fields can stay as they are."""
    if not _fills(fields) or fields.get("prompt") not in (None, ""):
        return None
    return {**fields, "prompt": " ", "fim": {**(fields.get("fim") or {}), AT_START: True}}


def _fills(fields: Mapping[str, Any]) -> bool:
    """Whether a completion fills in a middle."""
    return bool(fields.get("suffix") or fields.get("fim"))


def string(field: str, value: Any) -> str:
    """Return a text. Raises WrongValue."""
    if not isinstance(value, str):
        raise WrongValue(field, "missing" if value is None else describe(value), "a string")
    return value


def _known(field: str, value: Any, names: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise WrongValue(field, describe(value), "an object")
    for name in value:
        if name not in names:
            raise NotTaken(f"{field}.{name}"[:64], f"it has {', '.join(names)}")
