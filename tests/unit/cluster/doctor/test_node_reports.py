"""Merged reports of several nodes."""

from __future__ import annotations

from qwenfleet.cluster.doctor.finding import Finding, Level, Subject, note, ok
from qwenfleet.cluster.doctor.node_reports import NodeReport, judge, merged

LATE = note(Subject.CLOCK, "nothing synchronizes it", "Run chrony.")
FINE = ok(Subject.RAY, "Ray 2.60.0")
VERSIONS = {"Ray": "2.60.0", "vLLM": "0.32.0"}


def about_nodes(*reports: NodeReport) -> list[Finding]:
    """Findings that are not OK."""
    return [f for f in judge(reports) if f.level is not Level.OK]


def test_equal_findings_of_several_nodes_are_one() -> None:
    reports = [NodeReport(name, (LATE, FINE), VERSIONS) for name in ("a", "b", "c")]
    findings = merged([*reports, NodeReport("d", (FINE,), VERSIONS)])
    assert [(f.subject, f.nodes) for f in findings] == [
        (Subject.CLOCK, ("a", "b", "c")),
        (Subject.RAY, ("a", "b", "c", "d")),
    ]


def test_nodes_with_equal_versions_are_ok() -> None:
    findings = judge([NodeReport(name, (), VERSIONS, 0.01) for name in ("a", "b")])
    assert [f.sentence for f in findings] == ["2 of 2 nodes answered"]


def test_versions_that_differ_are_a_problem_that_names_the_nodes() -> None:
    (finding,) = about_nodes(
        NodeReport("a", (), VERSIONS),
        NodeReport("b", (), VERSIONS | {"vLLM": "0.31.0"}),
        NodeReport("c", (), VERSIONS),
    )
    assert finding.level is Level.PROBLEM
    assert "vLLM: 0.31.0 on b; 0.32.0 on a, c" in finding.sentence


def test_a_package_that_one_node_lacks_is_a_version_difference() -> None:
    (finding,) = about_nodes(
        NodeReport("a", (), VERSIONS), NodeReport("b", (), VERSIONS | {"vLLM": ""})
    )
    assert "none on b" in finding.sentence


def test_a_clock_more_than_a_second_off_is_a_note() -> None:
    findings = about_nodes(
        NodeReport("fast", (), VERSIONS, 2.5, 0.01),
        NodeReport("slow", (), VERSIONS, -1.5, 0.01),
        NodeReport("close", (), VERSIONS, 0.9, 0.01),
    )
    assert [(f.nodes, f.sentence) for f in findings] == [
        (("fast",), "its clock is 2.5 s fast compared with this machine's"),
        (("slow",), "its clock is 1.5 s slow compared with this machine's"),
    ]


def test_an_offset_within_the_round_trips_uncertainty_is_ignored() -> None:
    assert about_nodes(NodeReport("slow", (), VERSIONS, 1.5, 2.0)) == []


def test_a_node_that_does_not_answer_is_a_problem() -> None:
    findings = judge([NodeReport("a", (), VERSIONS), NodeReport("b", failure="no answer")])
    (finding,) = [f for f in findings if f.level is not Level.OK]
    assert finding.level is Level.PROBLEM
    assert finding.nodes == ("b",)
    assert "no answer" in finding.sentence
    assert not [f for f in findings if "answered" in f.sentence]


def test_a_node_without_qwenfleet_is_a_problem_with_a_remedy() -> None:
    (finding,) = about_nodes(NodeReport("b", lacks="qwenfleet"))
    assert "no module qwenfleet" in finding.sentence
    assert "ray job submit" in finding.remedy
