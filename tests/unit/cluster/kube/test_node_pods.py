"""The Ray pods of a Kubernetes node, and commands in them."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.kube import client, node_pods
from qwenfleet.cluster.kube import exec as kube_exec
from qwenfleet.cluster.kube.node_pods import nearest


@pytest.fixture
def api(ray_cluster_api: Any) -> Any:
    return ray_cluster_api


def test_only_running_pods_of_a_node_are_listed_and_the_head_may_be_on_another(api: Any) -> None:
    (found,) = node_pods.find(client.connect(), "gpu-1")
    assert found.ray_cluster == "coder-a"
    assert [pod.name for pod in found.pods] == ["worker-1", "worker-2"]
    assert found.head is not None
    assert found.head.name == "head"


@pytest.mark.parametrize(
    ("names", "reported"),
    [
        ([], "Existing nodes: none."),
        (["a", "b"], "Existing nodes: a, b."),
        (["e", "d", "c", "b", "a"], "Existing nodes: a, b, c and 2 more."),
    ],
)
def test_existing_names_are_listed_if_none_is_close(names: list[str], reported: str) -> None:
    assert nearest("completely-different", names) == reported


def test_a_command_that_does_not_finish_in_time_is_an_error(api: Any) -> None:
    api.exec.lasts_s = 5.0
    (fleet,) = node_pods.find(client.connect(), "gpu-1")
    assert fleet.head is not None
    with pytest.raises(KubernetesError, match="did not finish within 0 s"):
        kube_exec.run(client.connect(), fleet.head, ["sleep"], say=print, limit_s=0.1)


def test_a_lost_connection_is_one_sentence(api: Any) -> None:
    api.exec.breaks = True
    (fleet,) = node_pods.find(client.connect(), "gpu-1")
    assert fleet.head is not None
    with pytest.raises(KubernetesError, match="the connection to pod head was lost"):
        kube_exec.run(client.connect(), fleet.head, ["true"], say=print, limit_s=5)
