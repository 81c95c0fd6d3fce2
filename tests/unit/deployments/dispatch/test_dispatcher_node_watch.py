"""A taint on an engine's Kubernetes node moves its streams to another engine before the kill."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qwenfleet.cluster.kube import client, node_watch

SCRIPT = {"tokens": tuple(range(20)), "num_tokens": 20}
ADDRESS = "10.0.0.7"


@pytest.mark.parametrize("sign", ["taint", "pod deletion"])
async def test_streams_leave_an_engine_whose_node_or_pod_is_being_removed(
    sign: str,
    kubernetes_api: Any,
    new_desk: Any,
    serve_engine: Any,
    observed_core: Any,
    new_gate: Any,
    eventually: Any,
    metrics: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node: dict[str, Any] = {"metadata": {"name": "gpu-1"}, "spec": {}}
    pod: dict[str, Any] = {
        "metadata": {"name": "worker-1", "labels": {"ray.io/cluster": "coder-a"}},
        "spec": {"nodeName": "gpu-1"},
        "status": {"phase": "Running", "podIP": ADDRESS},
    }
    await asyncio.to_thread(kubernetes_api.put, "nodes", node)
    await asyncio.to_thread(kubernetes_api.put, "pods", pod)
    core = observed_core.Core(observed_core.model(**SCRIPT), sleep=new_gate())
    leaving = await serve_engine(engine="leaving", core=core)
    desk = new_desk()
    await desk.meet(leaving)
    streams = [desk.ask(f"r{index}") for index in range(3)]
    await eventually(lambda: len(leaving.core.active) == 3)
    staying = await serve_engine(engine="staying", **SCRIPT)
    await desk.meet(staying)
    monkeypatch.setattr(client, "is_in_pod", lambda: True)
    watch = await node_watch.start([ADDRESS])
    assert watch is not None
    drains: list[asyncio.Task[None]] = []
    watch.on_departure(
        lambda order: drains.append(
            asyncio.create_task(leaving.host.drain(order.reason, order.deadline_s))
        )
    )
    await eventually(lambda: kubernetes_api.watches() == 2)
    assert drains == []
    if sign == "taint":
        node["spec"]["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler"}]
        await asyncio.to_thread(kubernetes_api.put, "nodes", node)
    else:
        pod["metadata"] |= {"deletionTimestamp": "now", "deletionGracePeriodSeconds": 60}
        await asyncio.to_thread(kubernetes_api.put, "pods", pod)
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [list(range(20))] * 3
    assert {submit.request_id for submit in staying.core.submits} == {"r0", "r1", "r2"}
    assert [why for why, _ in metrics.resumes] == ["drained"] * 3
    await asyncio.wait_for(asyncio.gather(*drains), 10)
    watch.close()
