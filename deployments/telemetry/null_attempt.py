"""The null span of an attempt that is not traced; request spans and engines use it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from qwenfleet.deployments.telemetry.attempt_span import AttemptSpan

    AnyAttemptSpan: TypeAlias = "AttemptSpan | NoAttemptSpan"


class NoAttemptSpan:
    """Null AttemptSpan, for a request that is not traced."""

    __slots__ = ()
    headers: Final = None

    def scheduled(self, ago_s: float) -> None:
        pass

    def took(self, tokens: int) -> None:
        pass

    def resumed(self, gap_s: float) -> None:
        pass

    def finish(self, reason: int) -> None:
        pass

    def end(self, how: str, reason: str = "", *, is_error: bool | None = None) -> None:
        pass


NO_ATTEMPT_SPAN: Final = NoAttemptSpan()
