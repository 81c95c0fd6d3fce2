"""One machine, from facts to findings."""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwenfleet.cluster.doctor import examination
from qwenfleet.cluster.doctor.examination import Facts, Unread
from qwenfleet.cluster.doctor.finding import Finding, Level, Subject, as_json
from qwenfleet.cluster.errors import ModelSourceError


@pytest.fixture(autouse=True)
def no_fleet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def facts() -> Facts:
    return examination.gather()


def test_every_subject_of_this_machine_is_judged(facts: Facts) -> None:
    findings = examination.judge(facts)
    assert {finding.subject for finding in findings} == set(Subject) - {Subject.NODES}


@pytest.mark.parametrize("is_node", [False, True])
def test_findings_of_this_machine_are_sentences_with_remedies(facts: Facts, is_node: bool) -> None:
    for finding in examination.judge(facts, is_node=is_node):
        assert finding.sentence
        assert "\n" not in finding.sentence
        assert "Traceback" not in finding.sentence
        assert bool(finding.remedy) == (finding.level is not Level.OK)
    json.dumps(as_json(examination.judge(facts)))


def test_an_unreadable_machine_yields_notes_and_no_stack_trace(facts: Facts) -> None:
    blind: dict[str, Any] = {
        field.name: Unread("PermissionError: [Errno 13] no")
        for field in fields(Facts)
        if field.name != "variables"
    }
    findings = examination.judge(replace(facts, **blind | {"variables": {}}))
    unread = [finding for finding in findings if finding.level is not Level.OK]
    assert {finding.level for finding in unread} == {Level.NOTE}
    assert len(unread) == len(blind) - 2  # CPU and GPU depend on the packages
    assert all("Errno 13" in finding.sentence for finding in unread)


@pytest.mark.parametrize("name", [f.name for f in fields(Facts) if f.name != "variables"])
def test_a_check_that_cannot_run_does_not_stop_the_others(facts: Facts, name: str) -> None:
    unread: dict[str, Any] = {name: Unread("no")}
    findings: list[Finding] = examination.judge(replace(facts, **unread))
    assert sum("could not be checked: no" in finding.sentence for finding in findings) == 1
    assert len(findings) > 5


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "no"),
        ValueError("not a number"),
        psutil.AccessDenied(1),
        ModelSourceError("x", "no home", "Set it."),
        FileNotFoundError(2, "no such tool"),
    ],
)
def test_a_failed_reader_reports_the_reason_in_one_line(error: Exception) -> None:
    def fail() -> None:
        raise error

    unread = examination.attempt(fail)
    assert isinstance(unread, Unread)
    assert type(error).__name__ in unread.reason
    assert "\n" not in unread.reason


def test_a_bug_of_ours_is_raised() -> None:
    def fail() -> None:
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        examination.attempt(fail)


def test_a_node_answers_in_plain_values() -> None:
    answer = json.loads(json.dumps(examination.examine_node(0)))
    assert [Finding.from_json(tree) for tree in answer["findings"]]
    assert set(answer["versions"]) == {"Python", "Ray", "vLLM", "torch", "qwenfleet"}
    assert all(answer["versions"].values())


def test_an_examination_takes_less_than_three_seconds() -> None:
    begin = time.monotonic()
    examination.judge(examination.gather())
    assert time.monotonic() - begin < 3
