"""Clock synchronization of this machine, as the kernel reports it."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok

STA_UNSYNC = 0x40
"""Linux include/uapi/linux/timex.h: the clock is not synchronized."""


class _Timex(ctypes.Structure):
    """The first fields of `struct timex`; `rest` is space that the kernel writes to."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 40),
    )


@dataclass(frozen=True)
class Clock:
    """The result of adjtimex(2)."""

    is_synchronized: bool
    max_error_s: float


def read() -> Clock:
    """Ask the kernel. Any user may, because nothing is changed. Raises OSError."""
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return Clock(not timex.status & STA_UNSYNC, timex.maxerror / 1e6)


def judge(clock: Clock) -> list[Finding]:
    if clock.is_synchronized:
        return [ok(Subject.CLOCK, f"synchronized to {max(clock.max_error_s, 0.001):.3f} s")]
    return [
        note(
            Subject.CLOCK,
            "the kernel reports that the clock is not synchronized",
            "Run chrony or systemd-timesyncd (`timedatectl set-ntp true`), on the host if this is "
            "a container or a virtual machine. Logs and metrics of several nodes are compared by "
            "time.",
        )
    ]
