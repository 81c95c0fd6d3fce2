"""Reports of all nodes of a cluster, merged and compared. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qwenfleet.cluster.doctor.finding import Finding, Subject, at, note, ok, problem

CLOCK_OFFSET_S = 1.0
"""Registry, logs and metrics of different nodes are compared to about a second."""


@dataclass(frozen=True)
class NodeReport:
    """One node's answer, or the reason that it sent none."""

    node: str
    findings: tuple[Finding, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    offset_s: float | None = None
    """Its clock minus ours, at the midpoint of request and response; None if it was not asked."""
    round_trip_s: float = 0.0
    """Twice the uncertainty of the offset."""
    failure: str = ""
    """Reason that it did not answer."""
    lacks: str = ""
    """Module that it could not import."""


def judge(reports: Sequence[NodeReport]) -> list[Finding]:
    """The nodes' findings, equal ones merged, then the differences between nodes."""
    return [*merged(reports), *_judge_answers(reports), *_differences(reports), *_clocks(reports)]


def merged(reports: Sequence[NodeReport]) -> list[Finding]:
    """Findings in which one that several nodes share names all of them."""
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
            sentence = f"its Python has no module {report.lacks}, so engines cannot start there"
            remedy = (
                "Install qwenfleet in the Python environment of Ray on each node, or upload it "
                "with `ray job submit --working-dir .`."
            )
            findings += at(report.node, [problem(Subject.NODES, sentence, remedy)])
        elif report.failure:
            sentence = f"the node could not be examined: {report.failure}"
            remedy = "Check `ray status` and the raylet's log on that node."
            findings += at(report.node, [problem(Subject.NODES, sentence, remedy)])
    answered = sum(not (report.failure or report.lacks) for report in reports)
    if answered == len(reports):
        findings.append(ok(Subject.NODES, f"{answered} of {len(reports)} nodes answered"))
    return findings


def _differences(reports: Sequence[NodeReport]) -> list[Finding]:
    """Findings about versions: Ray and vLLM talk only to their own version."""
    findings = []
    for name in sorted({name for report in reports for name in report.versions}):
        nodes: dict[str, list[str]] = defaultdict(list)
        for report in reports:
            if report.versions:
                nodes[report.versions.get(name) or "none"].append(report.node)
        if len(nodes) > 1:
            versions = "; ".join(f"{v} on {', '.join(on)}" for v, on in sorted(nodes.items()))
            sentence = f"the nodes have different versions of {name}: {versions}"
            remedy = "Use one image, or the same pinned environment, on all nodes."
            findings.append(problem(Subject.NODES, sentence, remedy))
    return findings


def _clocks(reports: Sequence[NodeReport]) -> list[Finding]:
    findings = []
    for report in reports:
        if report.offset_s is None:
            continue
        certain_s = abs(report.offset_s) - report.round_trip_s / 2
        if certain_s > CLOCK_OFFSET_S:
            error = "fast" if report.offset_s > 0 else "slow"
            sentence = (
                f"its clock is {abs(report.offset_s):.1f} s {error} compared with this machine's"
            )
            remedy = "Run chrony or systemd-timesyncd on every node."
            findings += at(report.node, [note(Subject.CLOCK, sentence, remedy)])
    return findings
