"""Pulse: whether a core makes progress, by bounds that it teaches itself. Pure.

A core that compiles, or prefills a long prompt, is slow and not frozen; a stopped one does nothing
at all. Three signs tell them apart: the age of the last step, how long steps took so far, and
whether the core's processes use the CPU.
"""

from __future__ import annotations

from typing import Final

from qwenfleet.deployments.engine_host.compile_watch import Compiles, CompileWatch
from qwenfleet.deployments.wire.liveness import Condition, LearnedBound

SLOW_FACTOR: Final = 4.0
FROZEN_FACTOR: Final = 8.0
"""Steps of one engine spread over a factor of about four, a decode step to a full prefill chunk."""
SLOW_FLOOR_S: Final = 1.0
FROZEN_FLOOR_S: Final = 2.0
"""Below these a loaded operating system alone makes false alarms: 0.8 s without the CPU was seen on
two busy cores."""
CEILING_S: Final = 60.0
"""A core that uses the CPU for this long without a step counts as frozen: compilations were seen to
take 15 s."""
UNLEARNED_S: Final = 30.0
"""The bound on a step while few were seen: the first steps of each kind compile."""
IDLE_CPU: Final = 0.1
"""Share of one CPU core below which a core's processes count as idle."""


class Pulse:
    """Fed by the host with each step, and asked at each heartbeat. All times are seconds of one
    clock."""

    def __init__(self, now: float) -> None:
        self.condition = Condition.STEADY
        self.reason = ""
        """Why the condition is not steady, in words for an operator."""
        self._slow = LearnedBound(SLOW_FACTOR, SLOW_FLOOR_S, CEILING_S, UNLEARNED_S / 2)
        self._frozen = LearnedBound(FROZEN_FACTOR, FROZEN_FLOOR_S, CEILING_S, UNLEARNED_S)
        self._since = now
        """When the last step ended, or when work came to an idle core."""
        self._cpu_s: float | None = None
        self._looked_at = now
        self._is_burning = False
        self._is_late = False
        """Whether the step in progress is late."""
        self._compile_watch = CompileWatch()
        self._compile_reason = ""

    @property
    def bound_s(self) -> float:
        """After this long without a step and without CPU use, the core is frozen."""
        return self._frozen.seconds

    def work_came(self, now: float) -> None:
        """Record new work for an idle core, which had no reason to make a step until now."""
        if not self._is_late:
            self._since = now

    def excuse(self, now: float) -> None:
        """Restart the clock after the host itself stalled: the core's steps of that time are not
        read yet."""
        self._since = now
        self._cpu_s = None

    def step(self, now: float) -> None:
        """Record a step, which makes the core steady. A freeze at most doubles the bounds: steps
        that really are that long are learned in a few, and a stopped process is not a long step."""
        duration_s = now - self._since
        if self.condition is Condition.FROZEN:
            duration_s = min(duration_s, 2 * self.bound_s / FROZEN_FACTOR)
        self._slow.note(duration_s, now)
        self._frozen.note(duration_s, now)
        self._since = now
        self._recover()

    def note_compiles(self, compiles: Compiles, now: float) -> None:
        """Record what the core reports of its grammars. One that compiles none makes steps and
        keeps its streams, but gets no new work."""
        self._compile_reason = self._compile_watch.look(compiles, now)

    def compiles_late_s(self, now: float) -> float:
        """Seconds for which the core has compiled no grammar; 0 while it does."""
        since = self._compile_watch.ill_since
        return 0.0 if since is None else now - since

    def age_s(self, now: float) -> float:
        """Seconds that the current step has taken so far."""
        return now - self._since

    def look(self, now: float, *, has_work: bool, cpu_s: float | None) -> Condition:
        """Judge the core. `cpu_s` is the CPU time used so far by its processes; None if unknown."""
        self._note_cpu(now, cpu_s)
        if not has_work and self.condition is not Condition.FROZEN:
            self._since = now
            self._recover()
            return self.condition
        age_s = self.age_s(now)
        bound_s = CEILING_S if self._is_burning else self._frozen.seconds
        if age_s > bound_s or self.condition is Condition.FROZEN:
            self.condition = Condition.FROZEN
        elif age_s > self._slow.seconds or self._is_late:
            self.condition = Condition.SLOW
        else:
            self._recover()
            return self.condition
        self._is_late = True
        self.reason = (
            f"no step for {age_s:.1f} s (longest recent step: {self._frozen.longest_s:.2g} s); "
            f"its processes {'use' if self._is_burning else 'do not use'} the CPU"
        )
        return self.condition

    def _recover(self) -> None:
        """End what a late step showed; what grammars show stays."""
        self._is_late = False
        self.reason = self._compile_reason
        self.condition = Condition.SLOW if self.reason else Condition.STEADY

    def _note_cpu(self, now: float, cpu_s: float | None) -> None:
        if cpu_s is None or self._cpu_s is None:
            self._is_burning = False
        elif now > self._looked_at:
            used = (cpu_s - self._cpu_s) / (now - self._looked_at)
            self._is_burning = used >= IDLE_CPU
        self._cpu_s = cpu_s
        self._looked_at = now
