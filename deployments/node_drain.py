"""`qwenfleet drain --node`: by way of the Kubernetes API, or of a Ray cluster that is at hand."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from qwenfleet.cluster import kube, kube_drain, kube_exec
from qwenfleet.cluster.kube_drain import NodeFleet
from qwenfleet.deployments import host_drain


def run(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Raises DrainRefused, KubernetesError, and FleetNotFound with `--address`."""
    client = kube.connect(options.context, options.namespace)
    limit_s = options.deadline + 2 * host_drain.GRACE_S

    def move(fleet: NodeFleet, command: Sequence[str]) -> int:
        if options.address is None:
            assert fleet.head is not None  # `kube_drain.run` refuses it before
            return kube_exec.run(client, fleet.head, command, say=say, limit_s=limit_s)
        host_drain.run(
            [pod.address for pod in fleet.pods],
            options.address,
            deadline_s=options.deadline,
            is_forced=options.force,
            say=say,
        )
        return 0

    kube_drain.run(
        client,
        options.node,
        deadline_s=options.deadline,
        is_forced=options.force,
        move=move,
        say=say,
    )
