"""An engine's watch on its pod and node: when it delays a start, and when it orders a drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from qwenfleet.cluster.kube import client, node_watch
from qwenfleet.cluster.kube.departure import DELETED_NODE_S, NOTICES_S, Departure
from qwenfleet.cluster.kube.node_watch import NodeWatch, node_sign, pod_sign

TAINT = "aws-node-termination-handler/spot-itn"
ADDRESS = "10.0.0.7"


def node(name: str = "gpu-1", *taints: str, cordoned: bool = False) -> dict[str, Any]:
    spec = {"taints": [{"key": key} for key in taints], "unschedulable": cordoned}
    return {"metadata": {"name": name}, "spec": spec}


def pod(
    name: str = "worker-1", home: str = "gpu-1", phase: str = "Running", **metadata: Any
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"ray.io/cluster": "coder-a"}, **metadata},
        "spec": {"nodeName": home},
        "status": {"phase": phase, "podIP": ADDRESS},
    }


def test_an_ended_pod_next_to_a_running_one_is_ignored() -> None:
    ended = pod("old", phase="Failed", deletionTimestamp="2026-11-22T10:00:00Z")
    assert pod_sign({"old": ended, "new": pod("new")}, True).departure is None


@pytest.mark.parametrize("judge", [pod_sign, node_sign])
def test_a_deleted_object_is_a_departure_and_one_never_seen_is_not(judge: Any) -> None:
    found = judge({}, True).departure
    assert found is not None
    assert found.notice_s == DELETED_NODE_S
    assert judge({}, False).departure is None


class Watched:
    """A NodeWatch of one pod, its orders, and its reasons for delaying a start."""

    def __init__(self, watch: NodeWatch) -> None:
        self.watch = watch
        self.orders: list[Departure] = []
        self.reasons: list[str] = []

    def begin(self) -> None:
        self.watch.on_departure(self.orders.append)


@pytest_asyncio.fixture
async def watched(
    kubernetes_api: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Any]]:
    monkeypatch.setattr(client, "is_in_pod", lambda: True)
    made: list[NodeWatch] = []

    async def watched(*addresses: str) -> Watched:
        watch = await node_watch.start(addresses or (ADDRESS,))
        assert watch is not None
        made.append(watch)
        return Watched(watch)

    yield watched
    for watch in made:
        watch.close()


async def put(api: Any, resource: str, tree: dict[str, Any]) -> None:
    await asyncio.to_thread(api.put, resource, tree)


async def test_a_taint_becomes_an_order_with_the_remaining_time(
    kubernetes_api: Any, watched: Any, eventually: Any
) -> None:
    await put(kubernetes_api, "nodes", node())
    await put(kubernetes_api, "nodes", node("gpu-2", TAINT))
    await put(kubernetes_api, "pods", pod())
    one = await watched()
    await asyncio.wait_for(one.watch.may_start(one.reasons.append), 10)
    one.begin()
    await eventually(lambda: kubernetes_api.watches() == 2)
    assert one.orders == []
    await put(kubernetes_api, "nodes", node("gpu-1", TAINT))
    await eventually(lambda: bool(one.orders))
    await put(kubernetes_api, "nodes", node("gpu-1", TAINT, "something-else"))
    order = Departure(f"node gpu-1 has the taint {TAINT}", NOTICES_S[TAINT])
    assert one.orders == [order]


async def test_a_deleted_pod_drains_within_its_grace_period(
    kubernetes_api: Any, watched: Any, eventually: Any
) -> None:
    await put(kubernetes_api, "nodes", node())
    await put(kubernetes_api, "pods", pod())
    one = await watched()
    one.begin()
    await eventually(lambda: kubernetes_api.watches() == 2)
    deleted: dict[str, Any] = {
        "deletionTimestamp": "2026-11-22T10:00:00Z",
        "deletionGracePeriodSeconds": 90,
    }
    await put(kubernetes_api, "pods", pod(**deleted))
    await eventually(lambda: bool(one.orders))
    assert one.orders == [Departure("pod worker-1 is being deleted", 90)]


async def test_a_sign_from_before_the_engine_was_ready_is_not_lost(
    kubernetes_api: Any, watched: Any, eventually: Any
) -> None:
    await put(kubernetes_api, "nodes", node("gpu-1", TAINT))
    await put(kubernetes_api, "pods", pod())
    one = await watched()
    await eventually(lambda: one.watch.closed != "")
    one.begin()
    assert [order.reason for order in one.orders] == [f"node gpu-1 has the taint {TAINT}"]


async def test_a_start_waits_while_its_node_is_cordoned(
    kubernetes_api: Any, watched: Any, eventually: Any
) -> None:
    await put(kubernetes_api, "nodes", node(cordoned=True))
    await put(kubernetes_api, "pods", pod())
    one = await watched()
    start = asyncio.create_task(one.watch.may_start(one.reasons.append))
    await eventually(lambda: one.reasons == ["node gpu-1 is cordoned"])
    one.begin()
    assert not start.done()
    await put(kubernetes_api, "nodes", node())
    await asyncio.wait_for(start, 10)
    assert one.orders == [], "a cordon alone drains nothing"


async def test_no_engine_starts_in_a_pod_that_is_being_deleted(
    kubernetes_api: Any, watched: Any, eventually: Any
) -> None:
    await put(kubernetes_api, "nodes", node())
    await put(kubernetes_api, "pods", pod(deletionTimestamp="2026-11-22T10:00:00Z"))
    one = await watched()
    start = asyncio.create_task(one.watch.may_start(one.reasons.append))
    await eventually(lambda: one.reasons == ["pod worker-1 is being deleted"])
    start.cancel()


async def test_a_foreign_pod_at_the_same_address_is_ignored(
    kubernetes_api: Any, watched: Any, eventually: Any
) -> None:
    """Pods on the host's network share its address."""
    await put(kubernetes_api, "nodes", node())
    other = pod("agent", deletionTimestamp="2026-11-22T10:00:00Z")
    other["metadata"]["labels"] = {}
    await put(kubernetes_api, "pods", other)
    await put(kubernetes_api, "pods", pod())
    one = await watched()
    one.begin()
    await asyncio.wait_for(one.watch.may_start(one.reasons.append), 10)
    await eventually(lambda: kubernetes_api.watches() == 2)
    assert (one.orders, one.reasons) == ([], [])


async def test_every_pod_of_an_engine_across_several_counts(
    kubernetes_api: Any, watched: Any, eventually: Any
) -> None:
    for index in (1, 2):
        await put(kubernetes_api, "nodes", node(f"gpu-{index}"))
        tree = pod(f"worker-{index}", f"gpu-{index}")
        tree["status"]["podIP"] = f"10.0.0.{index}"
        await put(kubernetes_api, "pods", tree)
    one = await watched("10.0.0.1", "10.0.0.2")
    await asyncio.wait_for(one.watch.may_start(one.reasons.append), 10)
    one.begin()
    await put(kubernetes_api, "nodes", node("gpu-2", TAINT))
    await eventually(lambda: bool(one.orders))
    assert one.orders[0].reason == f"node gpu-2 has the taint {TAINT}"


async def test_a_start_does_not_wait_for_a_silent_server(
    kubernetes_api: Any, watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_watch, "FIRST_LOOK_S", 0.05)
    kubernetes_api.is_frozen = True
    one = await watched()
    await asyncio.wait_for(one.watch.may_start(one.reasons.append), 10)
    assert one.reasons == []
    kubernetes_api.is_frozen = False


async def test_without_permission_engines_start_and_the_log_names_verb_and_resource(
    kubernetes_api: Any,
    watched: Any,
    eventually: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_watch, "FIRST_LOOK_S", 0.05)
    kubernetes_api.denied = {("list", "pods")}
    one = await watched()
    await asyncio.wait_for(one.watch.may_start(one.reasons.append), 10)
    await eventually(lambda: any("list pods" in str(vars(r)) for r in caplog.records))


async def test_a_state_that_became_unknown_delays_no_start(
    kubernetes_api: Any, watched: Any, eventually: Any
) -> None:
    await put(kubernetes_api, "nodes", node(cordoned=True))
    await put(kubernetes_api, "pods", pod())
    one = await watched()
    start = asyncio.create_task(one.watch.may_start(one.reasons.append))
    await eventually(lambda: bool(one.reasons))
    one.watch._see("node", ADDRESS, None)
    await asyncio.wait_for(start, 10)


async def test_outside_kubernetes_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "is_in_pod", lambda: False)
    assert await node_watch.start([ADDRESS]) is None


async def test_a_broken_service_account_is_logged_and_stops_no_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "is_in_pod", lambda: True)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert await node_watch.start([ADDRESS]) is None
    assert "kubernetes nodes not watched" in caplog.text
