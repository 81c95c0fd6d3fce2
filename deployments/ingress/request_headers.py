"""Headers that vLLM and Serve read from a client's request. Pure."""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

from qwenfleet.deployments.ingress.field_errors import OutOfBounds, WrongValue

DROPPED: Final = frozenset(
    {
        b"x-vllm-priority",  # orders requests, as the field `priority` does within its bound
        b"x-data-parallel-rank",  # the dispatcher chooses the rank
        b"endpoint-load-metrics-format",  # asks for the load of an engine, in the answer's headers
        b"x-request-timeout-seconds",  # Serve's deadline; ours is x-request-timeout-s
    }
)
"""Headers that clients have no say in (vLLM 0.32 entrypoints/generate/base/serving.py and
entrypoints/openai/*/api_router.py, ray 2.60 serve/_private/constants.py)."""
NAMES: Final = frozenset({b"x-request-id", b"x-session-id"})
"""Headers that become part of every event, frame and log line of a request."""


def checked(scope: Scope, most_chars: int) -> Scope:
    """Return the request without headers that clients have no say in. Raises a FieldError if one
    that names the request is too long or is not printable ASCII."""
    kept = [pair for pair in scope["headers"] if pair[0] not in DROPPED]
    for name, value in kept:
        if name in NAMES:
            field = name.decode()
            if len(value) > most_chars:
                raise OutOfBounds(field, len(value), most_chars, "id_chars", "characters")
            text = value.decode("latin-1")
            if not (text.isascii() and text.isprintable()):
                raise WrongValue(field, repr(text), "a header of printable ASCII characters")
    return {**scope, "headers": kept}
