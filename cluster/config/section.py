"""The base of every part of the configuration tree: frozen, closed and strict.

Scalars are not converted: YAML's `yes` is not a number, and `"8000"` is not a port.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """One part of the tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def refuse(problem: str, remedy: str, at: tuple[str | int, ...] = ()) -> PydanticCustomError:
    """Return the error of a cross-field rule: problem and remedy of a `ConfigError`, and the place
    in the section."""
    values = {"problem": problem, "remedy": remedy, "at": at}
    return PydanticCustomError("rule", "{problem}. {remedy}", values)
