"""The values of the closed sets match dashboards, alerts and users' queries."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from qwenfleet.cluster import labels
from qwenfleet.cluster.alerts import rule_file
from qwenfleet.cluster.metrics import CLOSED


def test_label_values_stay_the_ones_that_queries_use() -> None:
    assert CLOSED["outcome"] == (
        "completed", "refused", "no_key", "wrong_key", "unavailable", "failed", "timed_out",
        "client_deadline", "engine_lost", "disconnected",
    )  # fmt: skip
    assert CLOSED["loss"] == ("core_died", "reset", "silent", "frozen", "drained", "refused")
    assert CLOSED["decision"] == ("sent", "waits", "moved", "trial")
    assert CLOSED["state"] == ("starting", "ready", "quarantined", "draining")
    assert CLOSED["phase"] == (
        "waiting for its turn", "waiting", "starting", "finding the model", "importing vLLM",
        "reading the model's configuration", "importing vLLM in the core", "loading the model",
        "warming up",
    )  # fmt: skip


def test_label_values_are_plain_strings_as_ray_requires() -> None:
    assert {type(value) for values in CLOSED.values() for value in values} == {str}


def test_alerts_use_only_values_that_a_label_can_have() -> None:
    matchers = re.findall(r'\b(\w+)(?:=|!=|=~|!~)"([^"]*)"', rule_file.rules())
    named = {(label, word) for label, words in matchers for word in words.split("|")}
    ours = {(label, word) for label, word in named if label in CLOSED and label != "reason"}
    assert {label for label, _ in ours} >= {"outcome", "loss", "state", "role", "slo"}
    unknown = {(label, word) for label, word in ours if word not in CLOSED[label]}
    assert unknown <= {("slo", "start")}, "only `start` may be a threshold without an objective"


def test_label_values_are_spelled_only_in_labels_py() -> None:
    """Other modules use the enum members."""
    folder = Path(labels.__file__).parent
    values = [value.value for enum in (labels.Outcome, labels.EngineState) for value in enum]
    unique = {value for value in values if "_" in value or value == "quarantined"}
    for path in (*folder.rglob("*.py"), *(folder.parent / "deployments").rglob("*.py")):
        if path.name != "labels.py":
            text = path.read_text(encoding="utf-8")
            spelled = {value for value in unique if f'"{value}"' in text}
            assert not spelled, path


def test_no_module_compares_a_state_an_outcome_or_a_loss_with_a_string() -> None:
    root = Path(labels.__file__).parents[1]
    folders = (
        root / "deployments",
        root / "loadtest",
        root / "qwenfleet" / "cli",
    )
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for folder in folders
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr in {"state", "outcome", "loss", "phase"}
        and any(
            isinstance(other, ast.Constant) and isinstance(other.value, str)
            for other in node.comparators
        )
    ]
    assert not found
