"""The words of the closed sets are what dashboards, alerts and users' queries already name."""

from __future__ import annotations

import re
from pathlib import Path

from qwenfleet.cluster import labels
from qwenfleet.cluster.alerts import rule_file
from qwenfleet.cluster.metrics import CLOSED


def test_the_values_of_labels_are_those_that_queries_name() -> None:
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


def test_rays_metrics_get_plain_strings() -> None:
    assert {type(value) for values in CLOSED.values() for value in values} == {str}


def test_alerts_name_no_value_that_a_label_cannot_have() -> None:
    matchers = re.findall(r'\b(\w+)(?:=|!=|=~|!~)"([^"]*)"', rule_file.rules())
    named = {(label, word) for label, words in matchers for word in words.split("|")}
    ours = {(label, word) for label, word in named if label in CLOSED and label != "reason"}
    assert {label for label, _ in ours} >= {"outcome", "loss", "state", "role", "slo"}
    unknown = {(label, word) for label, word in ours if word not in CLOSED[label]}
    assert unknown <= {("slo", "start")}, "a threshold, and no objective"


def test_a_word_is_spelled_once_in_the_code() -> None:
    """`labels.py` is their one home; other modules name the member."""
    folder = Path(labels.__file__).parent
    values = [value.value for enum in (labels.Outcome, labels.EngineState) for value in enum]
    unique = {value for value in values if "_" in value or value == "quarantined"}
    for path in (*folder.rglob("*.py"), *(folder.parent / "deployments").rglob("*.py")):
        if path.name != "labels.py":
            text = path.read_text(encoding="utf-8")
            spelled = {value for value in unique if f'"{value}"' in text}
            assert not spelled, path
