"""Stages: what a process that starts is doing, and how long each part of that took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """One part of a start."""

    name: str
    began_at: float
    """Seconds since the epoch, to be compared with other processes of the machine."""
    seconds: float | None = None
    """None while it lasts."""


class StageClock:
    """One stage follows the other; none is left out between the first and `end`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._stages: list[Stage] = []

    def begin(self, name: str, at: float | None = None) -> None:
        """The next stage, from now on, or since `at`; the one before is over."""
        self.end()
        self._stages.append(Stage(str(name), self._clock() if at is None else at))

    def end(self) -> None:
        if self._stages and self._stages[-1].seconds is None:
            last = self._stages[-1]
            self._stages[-1] = replace(last, seconds=self._clock() - last.began_at)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(self._stages)


def table(processes: Sequence[tuple[str, Sequence[Stage]]]) -> str:
    """Who did what, from when on and for how long, in order of time; (who, stages) each."""
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
        lines.append(f"{who.ljust(names)}  {stage.began_at - start:6.1f}  {took:>6}  {stage.name}")
    return "\n".join(lines)
