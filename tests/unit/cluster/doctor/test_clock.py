"""The kernel's word on the clock."""

from __future__ import annotations

from qwenfleet.cluster.doctor import clock
from qwenfleet.cluster.doctor.clock import Clock
from qwenfleet.cluster.doctor.finding import Level


def test_a_synchronised_clock_is_ok_and_says_how_well() -> None:
    (finding,) = clock.judge(Clock(is_synchronised=True, max_error_s=0.25))
    assert finding.level is Level.OK
    assert "0.250 s" in finding.sentence


def test_a_clock_that_nothing_holds_is_a_note() -> None:
    (finding,) = clock.judge(Clock(is_synchronised=False, max_error_s=16.0))
    assert finding.level is Level.NOTE
    assert "chrony" in finding.way_out


def test_this_machines_kernel_answers() -> None:
    assert 0 <= clock.read().max_error_s < 1000
