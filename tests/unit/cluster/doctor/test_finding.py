"""Findings as text and as JSON."""

from __future__ import annotations

import json

import pytest

from qwenfleet.cluster.doctor.finding import (
    Finding,
    Level,
    Subject,
    as_json,
    at,
    note,
    ok,
    problem,
    problems,
    text,
    unreadable,
)

FINE = ok(Subject.PYTHON, "Python 3.11.2 at /usr/bin/python")
SURPRISE = note(Subject.CLOCK, "nothing synchronizes it", "Run chrony.")
BROKEN = problem(Subject.DISK, "0.1 GiB are free", "Free some.")


def test_problems_come_first_and_findings_that_are_ok_share_one_line() -> None:
    assert text([FINE, SURPRISE, BROKEN]).splitlines() == [
        "[problem] disk: 0.1 GiB are free",
        "    Free some.",
        "[note] clock: nothing synchronizes it",
        "    Run chrony.",
        "[ok] python (--verbose shows details)",
        "1 problem, 1 note",
    ]


def test_verbose_lists_findings_that_are_ok_too() -> None:
    assert text([FINE], is_verbose=True).splitlines() == [
        "[ok] python: Python 3.11.2 at /usr/bin/python",
        "no problems, no notes",
    ]


def test_up_to_three_nodes_are_named_and_more_are_counted() -> None:
    few = Finding(Level.NOTE, Subject.CLOCK, "late", "Wait.", ("a", "b"))
    many = Finding(Level.NOTE, Subject.CLOCK, "late", "Wait.", ("a", "b", "c", "d"))
    assert "[note] a, b: clock: late" in text([few])
    assert "[note] 4 nodes: clock: late" in text([many])


def test_json_has_stable_keys_and_the_number_of_problems() -> None:
    tree = json.loads(json.dumps(as_json([FINE, BROKEN, BROKEN])))
    assert set(tree) == {"findings", "problems"}
    assert tree["problems"] == 2
    assert tree["findings"][0] == {
        "level": "problem",
        "subject": "disk",
        "sentence": "0.1 GiB are free",
        "remedy": "Free some.",
        "nodes": [],
    }
    assert [finding["level"] for finding in tree["findings"]] == ["problem", "problem", "ok"]


def test_json_comes_back_as_the_same_finding() -> None:
    (finding,) = at("node-1", [SURPRISE])
    assert Finding.from_json(json.loads(json.dumps(finding.as_json()))) == finding


@pytest.mark.parametrize(
    "change",
    [{"level": "disaster"}, {"subject": "weather"}, {"remedy": ""}],
)
def test_json_from_an_unknown_version_is_rejected(
    change: dict[str, str],
) -> None:
    with pytest.raises(ValueError, match=r"disaster|weather|needs a remedy"):
        Finding.from_json(SURPRISE.as_json() | change)


@pytest.mark.parametrize("make", [note, problem])
def test_a_note_or_problem_needs_a_remedy(make) -> None:
    with pytest.raises(ValueError, match="needs a remedy"):
        make(Subject.DISK, "full", "")


def test_a_check_that_cannot_run_is_a_note() -> None:
    finding = unreadable(Subject.GPU, "PermissionError: no")
    assert finding.level is Level.NOTE
    assert "PermissionError: no" in finding.sentence
    assert problems([finding, FINE]) == 0
