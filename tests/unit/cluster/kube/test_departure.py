"""Taints, conditions and deletions that make an engine drain, and the time they leave."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.kube import departure, objects
from qwenfleet.cluster.kube.departure import MARGIN_S, NOTICES_S, SPOT_S, Departure


def node(*taints: str, deleted: bool = False, cordoned: bool = False) -> objects.KubeNode:
    metadata: dict[str, Any] = {"name": "n1"}
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-22T10:00:00Z"
    spec = {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]}
    return objects.node({"metadata": metadata, "spec": spec | {"unschedulable": cordoned}})


def pod(**tree: Any) -> objects.KubePod:
    tree.setdefault("metadata", {}).setdefault("name", "p1")
    return objects.pod(tree)


@pytest.mark.parametrize("key", NOTICES_S)
def test_a_termination_taint_is_a_departure(key: str) -> None:
    found = departure.of_node(node("nvidia.com/gpu", key))
    assert found == Departure(f"node n1 has the taint {key}", NOTICES_S[key])
    assert departure.closed(node(key)) == f"node n1 has the taint {key}"


@pytest.mark.parametrize(
    "key",
    [
        "nvidia.com/gpu",
        "kubernetes.azure.com/scalesetpriority",
        "aws-node-termination-handler/rebalance-recommendation",
        "DeletionCandidateOfClusterAutoscaler",
        "node.kubernetes.io/memory-pressure",
    ],
)
def test_other_taints_mean_nothing(key: str) -> None:
    assert departure.of_node(node(key)) is None
    assert departure.closed(node(key)) == ""


@pytest.mark.parametrize(
    ("closed", "reason"),
    [
        (node("node.kubernetes.io/unschedulable", cordoned=True), "node n1 is cordoned"),
        (node("karpenter.sh/disrupted"), "node n1 has the taint karpenter.sh/disrupted"),
    ],
    ids=["cordon", "karpenter"],
)
def test_a_node_can_be_closed_without_a_departure(closed: objects.KubeNode, reason: str) -> None:
    assert departure.of_node(closed) is None
    assert departure.closed(closed) == reason


def test_a_node_that_is_being_deleted_is_a_departure() -> None:
    assert departure.of_node(node(deleted=True)) == Departure("node n1 is being deleted", SPOT_S)


def test_a_pod_that_is_being_deleted_has_its_grace_period() -> None:
    metadata = {"deletionTimestamp": "2026-11-22T10:00:00Z", "deletionGracePeriodSeconds": 120}
    found = departure.of_pod(pod(metadata=metadata))
    assert found == Departure("pod p1 is being deleted", 120.0)
    assert found.deadline_s == 120.0 - MARGIN_S


@pytest.mark.parametrize(("sleep_s", "notice_s"), [(60, 60.0), (300, 120.0), (0, 0.0)])
def test_a_pod_that_is_being_deleted_has_until_sigterm(sleep_s: int, notice_s: float) -> None:
    metadata = {"deletionTimestamp": "2026-11-22T10:00:00Z", "deletionGracePeriodSeconds": 120}
    container = {"name": "ray", "lifecycle": {"preStop": {"sleep": {"seconds": sleep_s}}}}
    found = departure.of_pod(pod(metadata=metadata, spec={"containers": [container]}))
    assert found is not None
    assert found.notice_s == notice_s


def test_a_pod_that_is_about_to_be_evicted_or_terminated_is_a_departure() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    found = departure.of_pod(pod(status={"conditions": [condition]}))
    assert found == Departure("pod p1 is about to be removed (TerminationByKubelet)", SPOT_S)
    assert departure.of_pod(pod(status={"conditions": [condition | {"status": "False"}]})) is None


def test_a_running_pod_is_no_departure() -> None:
    assert departure.of_pod(pod(status={"phase": "Running"})) is None


@given(st.lists(st.sampled_from([*NOTICES_S, "other", "karpenter.sh/disrupted"])), st.booleans())
def test_the_shortest_notice_counts_and_every_departure_closes_the_node(
    taints: list[str], deleted: bool
) -> None:
    one = node(*taints, deleted=deleted)
    found = departure.of_node(one)
    notices = [NOTICES_S[key] for key in taints if key in NOTICES_S] + [SPOT_S] * deleted
    assert (None if found is None else found.notice_s) == min(notices, default=None)
    if found is not None:
        assert departure.closed(one)


@given(st.floats(0, 1e6))
def test_a_deadline_is_never_negative_and_ends_before_the_notice(notice_s: float) -> None:
    deadline_s = Departure("x", notice_s).deadline_s
    assert 0 <= deadline_s <= notice_s
