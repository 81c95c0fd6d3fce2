"""Tests of the rules with promtool: each alert fires when it should, and only then."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwenfleet.cluster.alerts import rule_file
from qwenfleet.cluster.chart.generate import ROOT

RULES = ROOT / "helm" / "qwenfleet" / "files" / "rules.yaml"
CASES = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
PROMTOOL = shutil.which("promtool")
pytestmark = [
    pytest.mark.watch,
    pytest.mark.skipif(
        PROMTOOL is None,
        reason="promtool is missing: it comes with Prometheus (Debian: prometheus)",
    ),
]


def promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def cases(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("scale", [1.0, 1 / 60])
def test_prometheus_accepts_the_rules(tmp_path: Path, scale: float) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(rule_file.rules(scale), encoding="utf-8")
    promtool("check", "rules", str(path))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_an_alert_fires_only_when_it_should(path: Path) -> None:
    promtool("test", "rules", str(path))


def test_every_alert_has_its_cases() -> None:
    assert {path.stem for path in CASES} == {alert.name for alert in rule_file.alerts()}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_cases_contain_an_alert_that_fires_and_one_that_does_not(path: Path) -> None:
    checks = [c for test in cases(path)["tests"] for c in test.get("alert_rule_test", [])]
    checks = [c for c in checks if c["alertname"] == path.stem]
    assert any(check["exp_alerts"] for check in checks)
    assert any(not check["exp_alerts"] for check in checks)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_cases_use_the_chart_s_rules_in_their_order(path: Path) -> None:
    """promtool evaluates groups in no fixed order, and groups that are not listed first of all."""
    tree = cases(path)
    assert [(path.parent / name).resolve() for name in tree["rule_files"]] == [RULES]
    assert tree["group_eval_order"] == [group.name for group in rule_file.groups()]
