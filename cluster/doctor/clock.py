"""Whether this machine's clock is held to the world's: the kernel's own word."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok

STA_UNSYNC = 0x40
"""Linux include/uapi/linux/timex.h: nothing disciplines the clock."""


class _Timex(ctypes.Structure):
    """The head of `struct timex`; the rest is room for the kernel to write to."""

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
    """What adjtimex(2) tells."""

    is_synchronised: bool
    max_error_s: float


def read() -> Clock:
    """Ask the kernel; changes nothing, so that any user may. Raises OSError."""
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return Clock(not timex.status & STA_UNSYNC, timex.maxerror / 1e6)


def judge(clock: Clock) -> list[Finding]:
    if clock.is_synchronised:
        return [ok(Subject.CLOCK, f"synchronised to {max(clock.max_error_s, 0.001):.3f} s")]
    return [
        note(
            Subject.CLOCK,
            "the kernel says that nothing synchronises the clock",
            "Run chrony or systemd-timesyncd (`timedatectl set-ntp true`); in a container or a "
            "virtual machine, on the host. Logs and metrics of several nodes are compared by time.",
        )
    ]
