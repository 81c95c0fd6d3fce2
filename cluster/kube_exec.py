"""Running a command in a pod, by the API server: `kubectl exec` without kubectl."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from qwenfleet.cluster import kube_failures
from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.kube import Kube, Query
from qwenfleet.cluster.kube_objects import KubePod

POLL_S: Final = 1.0


def run(
    kube: Kube, pod: KubePod, command: Sequence[str], *, say: Callable[[str], None], limit_s: float
) -> int:
    """The command's exit status; `say` hears each line of its output.

    Raises KubernetesError when the pod does not let us in, the connection is lost, or the command
    is not over after `limit_s`; it may go on there then.
    """
    from kubernetes import client
    from kubernetes.stream import stream

    query = Query("pods/exec", pod.namespace)
    api = client.CoreV1Api(kube.api)
    with kube_failures.translated("create", query, kube.api.configuration.host):
        talk = stream(
            api.connect_get_namespaced_pod_exec,
            pod.name,
            pod.namespace,
            container=pod.container,
            command=list(command),
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
    give_up_at = time.monotonic() + limit_s
    rest = ""
    try:
        while talk.is_open():
            talk.update(timeout=POLL_S)
            *lines, rest = (rest + talk.read_all()).split("\n")
            for line in lines:
                say(line)
            if time.monotonic() > give_up_at:
                raise KubernetesError(
                    f"the command in pod {pod.name} is not over after {limit_s:.0f} s",
                    "It may go on there.",
                )
        if rest:
            say(rest)
        return int(talk.returncode)
    except (OSError, TypeError, KeyError) as error:  # no exit status came
        raise KubernetesError(
            f"the connection to pod {pod.name} was lost ({error})", "Run it again."
        ) from error
    finally:
        talk.close()
