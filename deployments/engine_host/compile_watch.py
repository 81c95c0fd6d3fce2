"""CompileWatch: whether an engine's core still compiles grammars, by a bound that it teaches. Pure.

A core whose compiling threads are busy makes steps as before, so its pulse is steady, but no
request with a new grammar begins.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from qwenfleet.deployments.wire.liveness import LearnedBound

FACTOR: Final = 8.0
FLOOR_S: Final = 10.0
"""Gateways let through grammars of 2 s of CPU time, and several may come at once."""
CEILING_S: Final = 60.0
UNLEARNED_S: Final = 30.0


class Compiles(NamedTuple):
    """The grammars of a core."""

    oldest_s: float = 0.0
    """Seconds for which a request has waited for its grammar, at most; 0 if none waits."""
    stuck: int = 0
    """Grammars that were given up and still use a thread."""
    done: int = 0
    """Grammars compiled since the start."""
    longest_s: float = 0.0
    """Seconds of the longest of those that were compiled since the last look."""


class CompileWatch:
    """Fed at each heartbeat with what the core reports."""

    def __init__(self) -> None:
        self.ill_since: float | None = None
        """When the core began to compile no more; None while it does."""
        self._bound = LearnedBound(FACTOR, FLOOR_S, CEILING_S, UNLEARNED_S)
        self._done = 0

    def look(self, compiles: Compiles, now: float) -> str:
        """Return why the core is ill, in words for an operator; empty while it is well."""
        has_done_some = compiles.done != self._done
        if has_done_some:
            self._done = compiles.done
            self._bound.note(compiles.longest_s, now)
        reason = "" if has_done_some and not compiles.stuck else self._reason(compiles)
        if not reason:
            self.ill_since = None
        elif self.ill_since is None:
            self.ill_since = now
        return reason

    def _reason(self, compiles: Compiles) -> str:
        if compiles.stuck:
            return f"{compiles.stuck} grammars of ended requests still compile"
        if compiles.oldest_s > self._bound.seconds:
            return (
                f"a request has waited {compiles.oldest_s:.0f} s for its grammar (longest recent "
                f"compilation: {self._bound.longest_s:.2g} s)"
            )
        return ""
