"""`qwenfleet status --kube` as a command: JSON, watching, and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwenfleet.cli import __main__ as cli
from qwenfleet.cli import status
from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.kube import client as kube


def pod(name: str, gpus: int = 0) -> dict[str, Any]:
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return {
        "metadata": {"name": name, "labels": {"ray.io/cluster": "coder-aaaaa"}},
        "spec": {"nodeName": "h100-1", "containers": [{"name": "ray", "resources": resources}]},
        "status": {"phase": "Running"},
    }


@pytest.fixture
def api(kubernetes_api: Any) -> Any:
    """A service during an upgrade, with two pods on one node."""
    node = {"metadata": {"name": "h100-1"}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}
    kubernetes_api.put("nodes", node)
    service = {
        "metadata": {"name": "coder"},
        "status": {
            "activeServiceStatus": {
                "rayClusterName": "coder-aaaaa",
                "applicationStatuses": {"fleet": {"status": "RUNNING"}},
            },
            "pendingServiceStatus": {"rayClusterName": "coder-bbbbb", "trafficRoutedPercent": 25},
        },
    }
    kubernetes_api.put("rayservices", service)
    kubernetes_api.put("pods", pod("coder-head"))
    kubernetes_api.put("pods", pod("coder-h100", gpus=8))
    return kubernetes_api


def test_json_contains_the_whole_status(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--kube", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["namespace"] == "fleet"
    assert tree["services"][0]["pending"]["traffic_percent"] == 25
    assert tree["services"][0]["progress"].startswith("upgrading")
    assert tree["services"][0]["applications"] == {"fleet": "RUNNING"}
    assert tree["pods"][0]["gpus"] == {"nvidia": 8}
    assert tree["gpus"][0]["requested"] == 8


def test_another_namespace_can_be_chosen(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--kube", "--namespace", "void", "--context", "test"]) == 0
    printed = capsys.readouterr().out
    assert "note: namespace void has no RayService" in printed


def test_a_missing_permission_is_one_sentence_and_exit_status_1(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.denied = {("list", "rayservices")}
    assert cli.main(["status", "--kube"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("qwenfleet: the Kubernetes API does not let you list rayservices")


class Ended(Exception):
    """The test has seen enough."""


def watched(client: kube.Kube, steps: list[Any], **options: Any) -> list[str]:
    """Printed texts, with one step between two rounds."""
    printed: list[str] = []
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if not steps:
            raise Ended
        steps.pop(0)()

    with pytest.raises(Ended):
        status.watch(client, say=printed.append, clock=lambda: now[0], sleep=sleep, **options)
    return printed


def test_a_watch_prints_only_changes(api: Any) -> None:
    steps = [lambda: None, lambda: api.delete("pods", "coder-h100", "fleet"), lambda: None]
    printed = watched(kube.connect(), steps, as_json=True)
    assert [len(json.loads(line)["pods"]) for line in printed] == [2, 1]


def test_a_watch_prints_the_age_of_its_status_if_the_server_does_not_answer(api: Any) -> None:
    def away() -> None:
        api.token = "changed"

    def back() -> None:
        api.token = "secret"

    printed = watched(kube.connect(), [away, lambda: None, back], as_json=False)
    assert len(printed) == 3
    assert printed[0] == printed[2]
    assert printed[1].startswith(
        "the last status is 2 s old: the Kubernetes API rejected your crede"
    )


def test_a_terminal_is_redrawn_each_time(api: Any) -> None:
    printed = watched(kube.connect(), [lambda: None], as_json=False, is_terminal=True)
    assert [line.startswith(status.CLEAR) for line in printed] == [True, True]


def test_a_watch_that_cannot_start_is_an_error(api: Any) -> None:
    api.token = "changed"
    with pytest.raises(KubernetesError, match="rejected your credentials"):
        watched(kube.connect(), [], as_json=False)
