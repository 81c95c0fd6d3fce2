"""Clock synchronization as the kernel reports it."""

from __future__ import annotations

from qwenfleet.cluster.doctor import clock
from qwenfleet.cluster.doctor.clock import Clock
from qwenfleet.cluster.doctor.finding import Level


def test_a_synchronized_clock_is_ok_with_its_maximum_error() -> None:
    (finding,) = clock.judge(Clock(is_synchronized=True, max_error_s=0.25))
    assert finding.level is Level.OK
    assert "0.250 s" in finding.sentence


def test_an_unsynchronized_clock_is_a_note() -> None:
    (finding,) = clock.judge(Clock(is_synchronized=False, max_error_s=16.0))
    assert finding.level is Level.NOTE
    assert "chrony" in finding.remedy


def test_this_machines_kernel_answers() -> None:
    assert 0 <= clock.read().max_error_s < 1000
