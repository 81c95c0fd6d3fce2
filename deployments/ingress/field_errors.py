"""Errors about one field of a request; each names the field and the value that it has.

RequestError
├── OutOfBounds    400, or 413 for the size of a whole body
├── BeyondContext  400
├── WrongValue     400
└── NotTaken       400
"""

from __future__ import annotations

from typing import Final

from qwenfleet.deployments.ingress.errors import RequestError, shorten

SIZES: Final = frozenset({"body_values", "token_ids"})
"""Settings of `gateway.limits` that bound the size of a body as a whole."""


class FieldError(RequestError):
    """A field of the request is refused; `field` is its path, as `structured_outputs.choice`."""

    status = 400
    kind = "invalid_request_error"
    field: str

    @property
    def param(self) -> str | None:
        """The "param" of the OpenAI error object."""
        return self.field


class OutOfBounds(FieldError):
    """A field has a value, or a size in `unit`, outside of the bound of `gateway.limits.setting`.

    `setting` is empty if vLLM's own buffers are the bound.
    """

    code = "out_of_bounds"

    def __init__(self, field: str, value: int, bound: int, setting: str, unit: str = "") -> None:
        super().__init__(field, value, bound, setting, unit)
        self.field = field
        self.value = value
        self.bound = bound
        self.setting = setting
        self.unit = unit
        if setting in SIZES:
            self.status = 413

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        verb = "has" if self.unit else "is"
        side = "above" if self.value > self.bound else "below"
        extreme = "at most" if self.value > self.bound else "at least"
        value = shorten(str(self.value))
        ask = (
            f", or ask the operator to change gateway.limits.{self.setting}" if self.setting else ""
        )
        return (
            f"'{self.field}' {verb} {value}{unit}, {side} the limit of {self.bound}. "
            f"Send {extreme} {self.bound}{ask}."
        )


class BeyondContext(FieldError):
    """A prompt cannot fit into the context of the model; agents know the code and shorten it."""

    code = "context_length_exceeded"

    def __init__(self, field: str, value: int, unit: str, context_tokens: int) -> None:
        super().__init__(field, value, unit, context_tokens)
        self.field = field
        self.value = value
        self.unit = unit
        self.context_tokens = context_tokens

    def __str__(self) -> str:
        return (
            f"'{self.field}' has {self.value} {self.unit}, and the model's maximum context length "
            f"is {self.context_tokens} tokens. Send less."
        )


class WrongValue(FieldError):
    """A field has a value of a kind that it cannot have; `wanted` says which it can have."""

    code = "invalid_field"

    def __init__(self, field: str, value: str, wanted: str) -> None:
        super().__init__(field, value, wanted)
        self.field = field
        self.value = value
        self.wanted = wanted

    def __str__(self) -> str:
        return f"'{self.field}' is {shorten(self.value)}. Send {self.wanted}."


class NotTaken(FieldError):
    """The fleet does not take this field from clients."""

    code = "field_not_taken"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"'{self.field}' is not taken here: {self.reason}. Leave it out."
