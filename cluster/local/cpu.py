"""Check that this machine's CPU can run vLLM's CPU build."""

from __future__ import annotations

from pathlib import Path

from qwenfleet.cluster.errors import MachineError

_X86_FLAGS = ("avx512f", "avx2")
"""vLLM's CPU build for x86_64 needs one of these."""


def check_cpu(cpuinfo: str, machine: str) -> None:
    """Raise `MachineError` if vLLM's CPU build cannot run here.

    `cpuinfo` is the text of /proc/cpuinfo and `machine` is `platform.machine()`. Text without
    flags, as on a system without /proc, passes.
    """
    if machine != "x86_64":
        return
    flags = cpuinfo_value(cpuinfo, "flags").split()
    if not flags or any(flag in flags for flag in _X86_FLAGS):
        return
    name = cpuinfo_value(cpuinfo, "model name") or "unknown"
    raise MachineError(
        f"CPU '{name}' has neither {' nor '.join(_X86_FLAGS)}, and vLLM's CPU build needs one",
        "Use a machine with one of them. On a virtual machine, pass through the host's CPU.",
    )


def read_cpuinfo() -> str:
    """The text of /proc/cpuinfo; empty if it does not exist."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def cpuinfo_value(cpuinfo: str, key: str) -> str:
    """The first processor's value of `key`; empty if it has none."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
