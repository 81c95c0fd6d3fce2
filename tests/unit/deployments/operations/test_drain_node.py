"""Tests of `qwenfleet drain --node`: the head pod moves the streams, then the node is cordoned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from qwenfleet.cli import __main__ as cli
from qwenfleet.cluster.errors import DrainRefused, KubernetesError
from qwenfleet.cluster.kube import client
from qwenfleet.cluster.kube import exec as kube_exec
from qwenfleet.cluster.kube.node_pods import ClusterPods
from qwenfleet.deployments.operations.drain_node import drain_node


@pytest.fixture
def api(ray_cluster_api: Any) -> Any:
    return ray_cluster_api


def is_cordoned(api: Any, node: str) -> bool:
    return bool(api.get("nodes", node)["spec"].get("unschedulable"))


def test_command_moves_streams_through_the_head_pod_then_cordons(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.exec.output = ["draining e1 of cod", "er: 3 requests\ne1 stopped\n", "done"]
    assert cli.main(["drain", "--node", "gpu-1", "--deadline", "30", "--force"]) == 0
    assert api.exec.calls == [
        (
            "head",
            [
                *(
                    "python",
                    "-m",
                    "qwenfleet.deployments.operations.drain_hosts",
                    "--deadline",
                    "30",
                ),
                *("--force", "10.0.0.2", "10.0.0.3"),
            ],
        )
    ]
    assert capsys.readouterr().out.splitlines() == [
        "draining e1 of coder: 3 requests",
        "e1 stopped",
        "done",
        "gpu-1 is cordoned; `kubectl uncordon gpu-1` undoes that",
    ]
    assert is_cordoned(api, "gpu-1")
    asked = [(verb, query.get("dryRun")) for verb, _, query in api.requests]
    order = [call for call in asked if call[0] in ("create", "patch")]
    assert order == [("patch", "All"), ("create", None), ("patch", None)], "streams leave first"


def test_failed_drain_leaves_the_node_unchanged(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.exec.output = ["qwenfleet: every ready engine of model 'coder' uses this node\n"]
    api.exec.exit_status = 1
    assert cli.main(["drain", "--node", "gpu-1"]) == 1
    printed = capsys.readouterr()
    assert "every ready engine" in printed.out
    assert printed.err.startswith(
        "qwenfleet: node gpu-1 is not cordoned: the drain in pod head failed"
    )
    assert not is_cordoned(api, "gpu-1")


def test_user_without_exec_rights_gets_the_commands_to_run(api: Any) -> None:
    api.denied = {("create", "pods/exec")}

    def move(cluster: ClusterPods, command: Sequence[str]) -> int:
        assert cluster.head is not None
        return kube_exec.run(client.connect(), cluster.head, command, say=print, limit_s=5)

    with pytest.raises(KubernetesError) as caught:
        drain_node(client.connect(), "gpu-1", deadline_s=60, is_forced=False, move=move, say=print)
    printed = str(caught.value)
    assert "does not let you create pods/exec in namespace fleet" in printed
    assert printed.endswith(
        "Run `kubectl exec -n fleet head -c ray-head -- "
        "python -m qwenfleet.deployments.operations.drain_hosts "
        "--deadline 60 10.0.0.2 10.0.0.3`, then `kubectl cordon gpu-1`."
    )
    assert not is_cordoned(api, "gpu-1")


def test_node_without_pods_of_the_fleet_is_only_cordoned(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["drain", "--node", "gpu-3"]) == 0
    assert "no Ray pod in namespace fleet runs on gpu-3" in capsys.readouterr().out
    assert api.exec.calls == []
    assert is_cordoned(api, "gpu-3")


def test_drain_of_the_heads_node_prints_a_warning(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["drain", "--node", "cpu-1"]) == 0
    assert "note: the head of coder-a, head, runs on this node" in capsys.readouterr().out


def test_cluster_without_a_head_is_refused(api: Any) -> None:
    api.delete("pods", "head", "fleet")
    with pytest.raises(DrainRefused, match="RayCluster coder-a has no running head"):
        drain_node(
            client.connect(),
            "gpu-1",
            deadline_s=60,
            is_forced=False,
            move=lambda cluster, command: 0,
            say=print,
        )
    assert not is_cordoned(api, "gpu-1")


def test_unknown_node_is_refused_with_the_nearest_names(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["drain", "--node", "gpu1"]) == 1
    printed = capsys.readouterr().err
    names = "gpu-1 or gpu-2 or gpu-3"
    assert printed == f"qwenfleet: node 'gpu1' does not exist. Did you mean {names}?\n"


def test_user_without_cordon_rights_is_refused_before_a_stream_moves(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.denied = {("patch", "nodes")}
    assert cli.main(["drain", "--node", "gpu-1"]) == 1
    assert api.exec.calls == []
    printed = capsys.readouterr().err
    assert "does not let you patch nodes of the cluster" in printed
    assert "the verb `patch` on `nodes`" in printed
