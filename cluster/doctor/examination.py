"""`qwenfleet doctor` on one machine: gather facts, judge them, return findings."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

from qwenfleet.cluster.doctor import (
    capacity,
    clock,
    exposure,
    folders,
    gpu_fit,
    gpus,
    listeners,
    package_fit,
    packages,
    ray_auth,
    variables,
)
from qwenfleet.cluster.doctor.capacity import Cpu, Disks, FileLimits, Memory, Room
from qwenfleet.cluster.doctor.clock import Clock
from qwenfleet.cluster.doctor.finding import Finding, Subject, unreadable
from qwenfleet.cluster.doctor.folders import Folders
from qwenfleet.cluster.doctor.gpus import Gpus
from qwenfleet.cluster.doctor.listeners import Listening, Ports
from qwenfleet.cluster.doctor.packages import Installed
from qwenfleet.cluster.doctor.ray_auth import Tokens
from qwenfleet.cluster.errors import FleetError, one_line
from qwenfleet.cluster.local import version

T = TypeVar("T")
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    FleetError,
    psutil.Error,
    subprocess.SubprocessError,
)
"""Errors that a reader raises on a machine that differs from what it expects."""


@dataclass(frozen=True)
class Unread:
    """Facts that could not be read."""

    reason: str


@dataclass(frozen=True)
class Facts:
    """All facts about a machine, before any is judged."""

    installed: Installed | Unread
    cpu: Cpu | Unread
    gpus: Gpus | Unread
    memory: Memory | Unread
    shared_memory: Room | Unread
    file_limits: FileLimits | Unread
    disks: Disks | Unread
    variables: dict[str, str]
    ports: Ports | Unread
    listening: Listening | Unread
    folders: Folders | Unread
    tokens: Tokens | Unread
    clock: Clock | Unread


def gather(visitor: int = 0) -> Facts:
    """Read everything, which takes about 0.3 s. Never raises if the machine lacks something.

    `visitor` is the pid of the `doctor` command if it runs on this machine in another process.
    """
    installed = attempt(packages.read)
    torch = None if isinstance(installed, Unread) else installed.torch
    return Facts(
        installed=installed,
        cpu=attempt(capacity.read_cpu),
        gpus=attempt(lambda: gpus.read(torch)),
        memory=attempt(capacity.read_memory),
        shared_memory=attempt(capacity.read_shared_memory),
        file_limits=attempt(capacity.read_file_limits),
        disks=attempt(capacity.read_disks),
        variables=variables.relevant(os.environ),
        ports=attempt(listeners.read_ports),
        listening=attempt(lambda: listeners.read(visitor)),
        folders=attempt(folders.read),
        tokens=attempt(ray_auth.read),
        clock=attempt(clock.read),
    )


def attempt(read: Callable[[], T]) -> T | Unread:
    """One reader's facts, or the reason that they could not be read."""
    try:
        return read()
    except UNREADABLE as error:
        return Unread(one_line(f"{type(error).__name__}: {error}", 200))


def judge(facts: Facts, *, is_node: bool = False) -> list[Finding]:
    """All findings of one machine; `is_node` if it belongs to a Ray cluster that already serves."""
    listening = None if isinstance(facts.listening, Unread) else facts.listening
    is_serving = is_node or any(x.owner.fleet for x in (listening.listeners if listening else ()))
    return [
        *_judge_packages(facts, is_node=is_node),
        *_judge(
            Subject.MEMORY, facts.memory, lambda x: capacity.judge_memory(x, is_serving=is_serving)
        ),
        *_judge(Subject.SHARED_MEMORY, facts.shared_memory, capacity.judge_shared_memory),
        *_judge(Subject.OPEN_FILES, facts.file_limits, capacity.judge_file_limits),
        *_judge(Subject.DISK, facts.disks, capacity.judge_disks),
        *variables.judge(facts.variables, is_node=is_node),
        *_judge(
            Subject.PORTS,
            facts.ports,
            lambda x: exposure.judge_ports(x, listening, is_node=is_node),
        ),
        *_judge(Subject.LISTENERS, facts.listening, exposure.judge_listeners),
        *_judge(Subject.FILES, facts.folders, folders.judge),
        *_judge(Subject.RAY, facts.tokens, ray_auth.judge),
        *_judge(Subject.CLOCK, facts.clock, clock.judge),
    ]


def examine_node(visitor: int) -> dict[str, Any]:
    """A cluster node's answer in plain values, which other versions of qwenfleet can read."""
    facts = gather(visitor)
    return {
        "findings": [finding.as_json() for finding in judge(facts, is_node=True)],
        "versions": versions(facts.installed),
    }


def versions(installed: Installed | Unread) -> dict[str, str]:
    """Versions that must be the same on all nodes of a cluster."""
    if isinstance(installed, Unread):
        return {}
    vllm = installed.vllm
    return {
        "Python": ".".join(map(str, installed.python)),
        "Ray": installed.version("ray"),
        "vLLM": vllm.release if vllm else "",
        "torch": installed.torch.release if installed.torch else "",
        "qwenfleet": version.own_version(),
    }


def _judge_packages(facts: Facts, *, is_node: bool) -> list[Finding]:
    """Findings that depend on the installed packages."""
    installed = facts.installed
    if isinstance(installed, Unread):
        return [unreadable(Subject.PYTHON, installed.reason)]
    is_cpu_build = installed.vllm is not None and installed.vllm.build == "cpu"
    return [
        *package_fit.judge_python(installed),
        *package_fit.judge_torch(installed),
        *package_fit.judge_vllm(installed, facts.variables.get("VLLM_PLUGINS")),
        *package_fit.judge_ray(installed),
        *_judge(
            Subject.CPU,
            facts.cpu,
            lambda x: capacity.judge_cpu(x, installed.extensions, is_cpu_build=is_cpu_build),
        ),
        *_judge(
            Subject.GPU,
            facts.gpus,
            lambda x: gpu_fit.judge(x, installed.torch, is_node=is_node),
        ),
    ]


def _judge(
    subject: Subject, facts: T | Unread, judge: Callable[[T], list[Finding]]
) -> list[Finding]:
    if isinstance(facts, Unread):
        return [unreadable(subject, facts.reason)]
    return judge(facts)
