"""Slow is not frozen: a core's pulse, with the test's own clock and CPU meter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.engine_host.pulse import (
    CEILING_S,
    FROZEN_FLOOR_S,
    SLOW_FLOOR_S,
    UNLEARNED_S,
    Pulse,
)
from qwenfleet.deployments.wire.liveness import ENOUGH, Condition

STEADY, SLOW, FROZEN = Condition


class Patient:
    """A core under observation: a heartbeat looks at it twice a second."""

    def __init__(self, *, knows_cpu: bool = True) -> None:
        self.now = 1000.0
        self.cpu_s: float | None = 50.0 if knows_cpu else None
        self.pulse = Pulse(self.now)
        self.seen: list[Condition] = []

    def live(self, seconds: float, *, load: float = 0.0, has_work: bool = True) -> Condition:
        """Go without a step for this long, using this share of a CPU core."""
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            if self.cpu_s is not None:
                self.cpu_s += 0.5 * load
            condition = self.pulse.look(self.now, has_work=has_work, cpu_s=self.cpu_s)
            if not self.seen or self.seen[-1] is not condition:
                self.seen.append(condition)
        return self.pulse.condition

    def step(self, duration_s: float = 0.02) -> None:
        self.now += duration_s
        self.pulse.step(self.now)

    def learn(self, step_s: float = 0.02) -> None:
        self.pulse.work_came(self.now)
        for _ in range(ENOUGH):
            self.step(step_s)


@pytest.fixture
def patient() -> Patient:
    patient = Patient()
    patient.learn()
    return patient


def test_a_step_of_fifteen_seconds_on_a_busy_cpu_is_slow_and_never_frozen(
    patient: Patient,
) -> None:
    patient.live(15, load=0.9)
    assert patient.seen == [STEADY, SLOW]
    patient.step(0)
    assert patient.live(1) is STEADY
    assert patient.pulse.reason == ""


def test_an_idle_cpu_with_work_is_frozen_at_the_learned_bound(patient: Patient) -> None:
    assert patient.pulse.bound_s == FROZEN_FLOOR_S
    patient.live(0.5)
    assert patient.live(SLOW_FLOOR_S) is SLOW
    assert patient.live(FROZEN_FLOOR_S - SLOW_FLOOR_S - 0.5) is SLOW
    assert patient.live(0.5) is FROZEN
    assert patient.seen == [STEADY, SLOW, FROZEN]


def test_the_bound_follows_the_steps_of_this_core() -> None:
    patient = Patient()
    patient.learn(step_s=2.0)
    assert patient.pulse.bound_s == 16
    assert patient.live(8) is STEADY
    assert patient.live(8) is SLOW
    assert patient.live(0.5) is FROZEN


def test_a_core_without_a_meter_is_judged_by_time_alone() -> None:
    patient = Patient(knows_cpu=False)
    patient.learn()
    assert patient.live(FROZEN_FLOOR_S + 0.5) is FROZEN


def test_the_first_steps_may_take_long(patient: Patient) -> None:
    fresh = Patient()
    fresh.pulse.work_came(fresh.now)
    assert fresh.live(UNLEARNED_S / 2) is STEADY
    assert fresh.live(UNLEARNED_S / 2) is SLOW
    assert fresh.live(0.5) is FROZEN


def test_a_core_that_uses_the_cpu_forever_becomes_frozen(patient: Patient) -> None:
    assert patient.live(CEILING_S, load=1.0) is SLOW
    assert patient.live(0.5, load=1.0) is FROZEN


def test_a_core_that_stops_using_the_cpu_is_judged_as_idle(patient: Patient) -> None:
    assert patient.live(10, load=1.0) is SLOW
    assert patient.live(0.5, load=0.0) is FROZEN
    # CPU use afterwards does not count as a step.
    assert patient.live(5, load=1.0) is FROZEN


def test_an_idle_core_without_work_stays_steady(patient: Patient) -> None:
    assert patient.live(500, has_work=False) is STEADY
    patient.pulse.work_came(patient.now)
    assert patient.live(SLOW_FLOOR_S) is STEADY
    assert patient.seen == [STEADY]


def test_work_that_came_late_starts_the_clock(patient: Patient) -> None:
    patient.now += 100  # no heartbeat looked meanwhile
    patient.pulse.work_came(patient.now)
    assert patient.live(SLOW_FLOOR_S) is STEADY
    assert patient.pulse.age_s(patient.now) == SLOW_FLOOR_S


def test_a_freeze_at_most_doubles_the_bound(patient: Patient) -> None:
    assert patient.live(50) is FROZEN
    patient.step()
    assert patient.live(0.5) is STEADY
    assert patient.pulse.bound_s == 2 * FROZEN_FLOOR_S
    assert patient.live(2 * FROZEN_FLOOR_S) is FROZEN


def test_a_host_that_stalled_does_not_judge(patient: Patient) -> None:
    patient.now += 130
    patient.pulse.excuse(patient.now)
    assert patient.pulse.look(patient.now, has_work=True, cpu_s=None) is STEADY
    assert patient.pulse.age_s(patient.now) == 0


def test_a_slow_step_raises_the_bound(patient: Patient) -> None:
    patient.live(5, load=1.0)
    patient.step()
    assert patient.pulse.bound_s == pytest.approx(8 * 5.02)


def test_a_frozen_core_stays_frozen_without_work_until_it_steps(patient: Patient) -> None:
    assert patient.live(10) is FROZEN
    assert patient.live(10, has_work=False) is FROZEN
    patient.pulse.work_came(patient.now)  # nothing to be steady about
    assert patient.pulse.age_s(patient.now) == 20
    patient.step()
    assert patient.live(10, has_work=False) is STEADY


def test_a_slow_core_whose_work_was_moved_is_steady(patient: Patient) -> None:
    assert patient.live(1.5) is SLOW
    assert patient.live(0.5, has_work=False) is STEADY
    assert patient.pulse.reason == ""


def test_the_reason_has_the_figures(patient: Patient) -> None:
    patient.live(4)
    assert patient.pulse.reason == (
        "no step for 4.0 s (longest recent step: 0.02 s); its processes do not use the CPU"
    )
    patient.step()
    patient.live(3, load=1.0)
    assert patient.pulse.reason.startswith("no step for 3.0 s")
    assert patient.pulse.reason.endswith("its processes use the CPU")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("live"), st.floats(0.5, 70), st.sampled_from([0.0, 0.05, 0.1, 2.0])),
            st.tuples(st.just("step"), st.floats(0, 5), st.just(0.0)),
        ),
        max_size=30,
    )
)
def test_a_busy_core_is_never_frozen_before_the_ceiling_and_a_step_always_makes_it_steady(
    events: list[tuple[str, float, float]],
) -> None:
    patient = Patient()
    patient.pulse.work_came(patient.now)
    for kind, seconds, load in events:
        if kind == "step":
            patient.step(seconds)
            assert patient.pulse.condition is STEADY
            continue
        was_frozen = patient.pulse.condition is FROZEN
        patient.live(seconds, load=load)
        age_s = patient.pulse.age_s(patient.now)
        if patient.pulse.condition is FROZEN and not was_frozen:
            assert age_s > FROZEN_FLOOR_S
        if age_s <= SLOW_FLOOR_S:
            assert patient.pulse.condition is STEADY
