"""`qwenfleet doctor` on a cluster: runs the same checks on every node and reports differences.

Ray is imported inside functions only: it reads its environment at import, after `attach` set it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenfleet.cluster.doctor import node_reports
from qwenfleet.cluster.doctor.finding import Finding
from qwenfleet.cluster.doctor.node_reports import NodeReport
from qwenfleet.deployments.operations import attach

ANSWER_TIMEOUT_S: Final = 30.0
"""Ray starts a worker on each node first: three workers on two idle cores took 3 s."""
CLOCK_READINGS: Final = 3
"""The fastest reading gives the best offset; the first may still wait for a worker to start."""


@dataclass(frozen=True)
class Node:
    id: str
    name: str


def run(port: int | None, address: str | None) -> list[Finding]:
    """Check every node of the cluster. Raises FleetNotFound when no cluster answers."""
    with attach.cluster(port, address):
        import ray

        nodes = named(ray.nodes())
        return node_reports.judge(list(_examine(nodes, ANSWER_TIMEOUT_S)))


def named(nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Name Ray's live nodes by host name, plus the start of the node id if two share a host."""
    alive = [node for node in nodes if node["Alive"]]
    hosts = [str(node["NodeManagerHostname"]) for node in alive]
    return [
        Node(node["NodeID"], host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][:6]}")
        for node, host in zip(alive, hosts, strict=True)
    ]


def report(
    node: Node, answer: Mapping[str, Any], readings: Sequence[tuple[float, ...]]
) -> NodeReport:
    """Build one node's report. Each reading holds clock times in seconds: local before, remote,
    local after."""
    offset_s, round_trip_s = None, 0.0
    if readings:
        before, there, after = min(readings, key=lambda reading: reading[2] - reading[0])
        offset_s, round_trip_s = there - (before + after) / 2, after - before
    try:
        return NodeReport(
            node.name,
            tuple(Finding.from_json(tree) for tree in answer["findings"]),
            dict(answer["versions"]),
            offset_s,
            round_trip_s,
        )
    except (ValueError, KeyError, TypeError) as error:
        return NodeReport(
            node.name, failure=f"it runs a different version of qwenfleet ({error!r})"
        )


def _examine(nodes: Sequence[Node], timeout_s: float) -> Iterator[NodeReport]:
    """Check all nodes in parallel, then read the clock of each that answered: its worker is warm
    by then."""
    import ray

    examine, now = _remote(_examination()), _remote(_clock())
    give_up_at = time.monotonic() + timeout_s
    here = ray.get_runtime_context().get_node_id()
    answers = [examine(node, os.getpid() if node.id == here else 0) for node in nodes]
    ray.wait(answers, num_returns=len(answers), timeout=timeout_s)
    for node, answer in zip(nodes, answers, strict=True):
        left_s = max(give_up_at - time.monotonic(), 1.0)
        try:
            answered = ray.get(answer, timeout=0)
            yield report(node, answered, _readings(node, now, left_s))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(answer, force=True)
            yield NodeReport(node.name, failure=f"no answer within {timeout_s:.0f} s")
        except ray.exceptions.RayError as error:
            yield _failed(node, error)


def _readings(
    node: Node, now: Callable[..., Any], timeout_s: float
) -> list[tuple[float, float, float]]:
    """Read a node's clock. Empty if the node is too slow; its findings still count."""
    import ray

    readings = []
    for _ in range(CLOCK_READINGS):
        before = time.time()
        try:
            there = ray.get(now(node), timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            return []
        readings.append((before, there, time.time()))
    return readings


def _failed(node: Node, error: Exception) -> NodeReport:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ImportError):
        return NodeReport(node.name, lacks=cause.name or "qwenfleet")
    first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return NodeReport(node.name, failure=f"{type(cause).__name__}: {first[:200]}")


def _remote(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function as a Ray task for a given node that reserves no CPU there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    return lambda node, *arguments: task.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
    ).remote(*arguments)


def _examination() -> Callable[[int], dict[str, Any]]:
    """Return the check as a nested function: Ray ships its code, so a node without qwenfleet can
    report that."""

    def examine(visitor: int) -> dict[str, Any]:
        from qwenfleet.cluster.doctor import examination

        return examination.examine_node(visitor)

    return examine


def _clock() -> Callable[[], float]:
    """Return the clock as a nested function, so that Ray ships its code."""

    def now() -> float:
        import time

        return time.time()

    return now
