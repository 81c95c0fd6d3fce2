"""Findings of `qwenfleet doctor`: one sentence and its remedy each, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """Severity of a finding, in the order of the report."""

    PROBLEM = "problem"
    """Stops or breaks `qwenfleet serve`."""
    NOTE = "note"
    """May surprise the user, or could not be checked."""
    OK = "ok"


class Subject(StrEnum):
    """Topic of a finding, in the order of the report."""

    PYTHON = "python"
    TORCH = "torch"
    VLLM = "vllm"
    RAY = "ray"
    CPU = "cpu"
    GPU = "gpu"
    MEMORY = "memory"
    SHARED_MEMORY = "shared memory"
    OPEN_FILES = "open files"
    DISK = "disk"
    ENVIRONMENT = "environment"
    PORTS = "ports"
    LISTENERS = "listeners"
    FILES = "files"
    CLOCK = "clock"
    NODES = "nodes"


@dataclass(frozen=True)
class Finding:
    """One sentence that names the value, without its period; `remedy` has whole sentences."""

    level: Level
    subject: Subject
    sentence: str
    remedy: str = ""
    """Empty at level OK only."""
    nodes: tuple[str, ...] = ()
    """Nodes that reported it; empty for this machine, or for the cluster as a whole."""

    def __post_init__(self) -> None:
        if bool(self.remedy) is (self.level is Level.OK):
            raise ValueError(f"every note and problem needs a remedy, and ok has none: {self}")

    def as_json(self) -> dict[str, Any]:
        """The keys are a public interface, also between nodes that run different versions."""
        return {
            "level": str(self.level),
            "subject": str(self.subject),
            "sentence": self.sentence,
            "remedy": self.remedy,
            "nodes": list(self.nodes),
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Finding:
        """Raises ValueError or KeyError if another version wrote keys that this one lacks."""
        return cls(
            Level(tree["level"]),
            Subject(tree["subject"]),
            str(tree["sentence"]),
            str(tree["remedy"]),
            tuple(map(str, tree["nodes"])),
        )


def ok(subject: Subject, sentence: str) -> Finding:
    return Finding(Level.OK, subject, sentence)


def note(subject: Subject, sentence: str, remedy: str) -> Finding:
    return Finding(Level.NOTE, subject, sentence, remedy)


def problem(subject: Subject, sentence: str, remedy: str) -> Finding:
    return Finding(Level.PROBLEM, subject, sentence, remedy)


def unreadable(subject: Subject, reason: str) -> Finding:
    """Note for a check that could not run."""
    return note(
        subject,
        f"could not be checked: {reason}",
        "Run the command as a user who has access, or check it by hand.",
    )


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sorted: problems first, then by subject; equal ones keep their order."""
    levels, subjects = list(Level), list(Subject)
    return sorted(findings, key=lambda f: (levels.index(f.level), subjects.index(f.subject)))


def problems(findings: Iterable[Finding]) -> int:
    return sum(finding.level is Level.PROBLEM for finding in findings)


def at(node: str, findings: Iterable[Finding]) -> list[Finding]:
    return [replace(finding, nodes=(node,)) for finding in findings]


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "findings": [finding.as_json() for finding in in_order(findings)],
        "problems": problems(findings),
    }


def text(findings: Sequence[Finding], *, is_verbose: bool = False) -> str:
    """Text for a terminal; findings at level OK share one line unless `is_verbose`."""
    lines = []
    for finding in in_order(findings):
        if finding.level is not Level.OK or is_verbose:
            lines.append(
                f"[{finding.level}] {_where(finding)}{finding.subject}: {finding.sentence}"
            )
            lines += [f"    {finding.remedy}"] if finding.remedy else []
    fine = [f.subject for f in in_order(findings) if f.level is Level.OK]
    if fine and not is_verbose:
        lines.append(f"[ok] {', '.join(dict.fromkeys(fine))} (--verbose shows details)")
    notes = sum(finding.level is Level.NOTE for finding in findings)
    counts = f"{_count(problems(findings), 'problem')}, {_count(notes, 'note')}"
    return "\n".join([*lines, counts])


def _where(finding: Finding) -> str:
    if len(finding.nodes) > 3:
        return f"{len(finding.nodes)} nodes: "
    return f"{', '.join(finding.nodes)}: " if finding.nodes else ""


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
