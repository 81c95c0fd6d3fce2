"""What the nodes of a cluster said of themselves, put together: pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qwenfleet.cluster.doctor.finding import Finding, Subject, at, note, ok, problem

CLOCK_OFFSET_S = 1.0
"""Registry, logs and metrics are read across nodes to about a second."""


@dataclass(frozen=True)
class NodeReport:
    """One node's answer, or why there is none."""

    node: str
    findings: tuple[Finding, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    offset_s: float | None = None
    """Its clock less ours, at the midpoint of request and response; None when it was not asked."""
    round_trip_s: float = 0.0
    """The offset is known to half of this."""
    failure: str = ""
    """Why it did not answer."""
    lacks: str = ""
    """The module that it could not import."""


def judge(reports: Sequence[NodeReport]) -> list[Finding]:
    """Each node's findings with equal ones merged, then what differs between nodes."""
    return [*merged(reports), *_judge_answers(reports), *_differences(reports), *_clocks(reports)]


def merged(reports: Sequence[NodeReport]) -> list[Finding]:
    """Equal findings of several nodes as one that names them all."""
    nodes: dict[Finding, list[str]] = defaultdict(list)
    for report in reports:
        for finding in report.findings:
            same = replace(finding, nodes=())
            if report.node not in nodes[same]:
                nodes[same].append(report.node)
    return [replace(finding, nodes=tuple(names)) for finding, names in nodes.items()]


def _judge_answers(reports: Sequence[NodeReport]) -> list[Finding]:
    findings = []
    for report in reports:
        if report.lacks:
            sentence = f"its Python has no module {report.lacks}, so that no engine can start there"
            way_out = (
                "Install qwenfleet in the environment of each node's Ray, or hand it over with "
                "`ray job submit --working-dir .`."
            )
            findings += at(report.node, [problem(Subject.NODES, sentence, way_out)])
        elif report.failure:
            sentence = f"it could not be examined: {report.failure}"
            way_out = "See `ray status`, and the raylet's log on that node."
            findings += at(report.node, [problem(Subject.NODES, sentence, way_out)])
    answered = sum(not (report.failure or report.lacks) for report in reports)
    if answered == len(reports):
        findings.append(ok(Subject.NODES, f"{answered} of {len(reports)} nodes answered"))
    return findings


def _differences(reports: Sequence[NodeReport]) -> list[Finding]:
    """Ray and vLLM speak to their like only."""
    findings = []
    for name in sorted({name for report in reports for name in report.versions}):
        nodes: dict[str, list[str]] = defaultdict(list)
        for report in reports:
            if report.versions:
                nodes[report.versions.get(name) or "none"].append(report.node)
        if len(nodes) > 1:
            said = "; ".join(f"{v} on {', '.join(on)}" for v, on in sorted(nodes.items()))
            sentence = f"the nodes have different versions of {name}: {said}"
            way_out = "Give all nodes one image, or one environment made of the same pins."
            findings.append(problem(Subject.NODES, sentence, way_out))
    return findings


def _clocks(reports: Sequence[NodeReport]) -> list[Finding]:
    findings = []
    for report in reports:
        if report.offset_s is None:
            continue
        certain_s = abs(report.offset_s) - report.round_trip_s / 2
        if certain_s > CLOCK_OFFSET_S:
            way = "ahead of" if report.offset_s > 0 else "behind"
            sentence = f"its clock is {abs(report.offset_s):.1f} s {way} the one here"
            way_out = "Run chrony or systemd-timesyncd on every node."
            findings += at(report.node, [note(Subject.CLOCK, sentence, way_out)])
    return findings
