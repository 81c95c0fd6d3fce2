"""Stages: the parts of a process start, and how long each one took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec


class Stage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part of a process start."""

    name: str
    began_at: float
    """Seconds since the epoch, comparable with other processes of the machine."""
    seconds: float | None = None
    """Its duration; None while it lasts."""
    detail: str = ""
    """Free text that follows the name."""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else self.name


class StageClock:
    """Records consecutive stages, without a pause between the first and `end`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._stages: list[Stage] = []

    def begin(self, name: str, detail: str = "", at: float | None = None) -> None:
        """Begin the next stage now, or as of `at`; this ends the one before."""
        self.end()
        began_at = self._clock() if at is None else at
        self._stages.append(Stage(str(name), began_at, detail=detail))

    def end(self) -> None:
        if self._stages and self._stages[-1].seconds is None:
            last = self._stages[-1]
            self._stages[-1] = msgspec.structs.replace(last, seconds=self._clock() - last.began_at)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(self._stages)


def seconds_of(stages: Sequence[Stage], but: Sequence[str] = ()) -> float:
    """The duration of all stages that have ended, but for those of these names."""
    return sum(stage.seconds or 0.0 for stage in stages if stage.name not in but)


def table(processes: Sequence[tuple[str, Sequence[Stage]]]) -> str:
    """Render the stages of all processes, given as (name, stages), in order of time."""
    rows = sorted(
        ((stage, who) for who, stages in processes for stage in stages),
        key=lambda row: row[0].began_at,
    )
    if not rows:
        return ""
    start = rows[0][0].began_at
    names = max(len(who) for _, who in rows)
    lines = [f"{'WHO'.ljust(names)}  FROM s  TOOK s  STAGE"]
    for stage, who in rows:
        took = "..." if stage.seconds is None else f"{stage.seconds:.1f}"
        lines.append(f"{who.ljust(names)}  {stage.began_at - start:6.1f}  {took:>6}  {stage}")
    return "\n".join(lines)
