"""Tests the alerts: their texts, and that each has a runbook."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from qwenfleet.cluster.alerts import rule_file
from qwenfleet.cluster.chart.generate import ROOT

RUNBOOKS = ROOT / "helm" / "runbooks"
SECTIONS = ("**What users feel.**", "**Confirm.**", "**Do", "**Over**")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(rule_file.rules())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def pages() -> set[str]:
    return {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_has_a_summary_and_links_to_its_runbook(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Qwenfleet")
    assert rule["labels"]["severity"] in {"page", "ticket"}
    annotations = rule["annotations"]
    assert annotations["runbook_url"] == f"RUNBOOKS_URL/{rule['alert']}.md"
    assert len(annotations["summary"]) < 80
    assert annotations["description"].endswith(".")


def test_alerts_and_runbooks_match() -> None:
    assert pages() == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize("name", sorted(pages()))
def test_runbook_has_all_sections_and_fits_a_screen(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    places = [text.index(section) for section in SECTIONS]
    assert places == sorted(places)
    assert 20 <= len(text.splitlines()) <= 40


def test_alert_has_one_rule_per_severity() -> None:
    keys = [(rule["alert"], rule["labels"]["severity"]) for rule in alerts()]
    assert len(keys) == len(set(keys))
