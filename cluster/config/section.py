"""What every part of the configuration tree is: frozen, closed and strict.

Scalars are strict: YAML's `yes` is no number and `"8000"` is no port.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """One part of the tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def refuse(problem: str, remedy: str, at: tuple[str | int, ...] = ()) -> PydanticCustomError:
    """A cross-field rule's error: the two halves of a `ConfigError`, and where in the section."""
    values = {"problem": problem, "remedy": remedy, "at": at}
    return PydanticCustomError("rule", "{problem}. {remedy}", values)
