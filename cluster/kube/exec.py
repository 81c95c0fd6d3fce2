"""Command execution in a pod through the API server: `kubectl exec` without kubectl."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.kube import failures
from qwenfleet.cluster.kube.client import Kube
from qwenfleet.cluster.kube.objects import KubePod
from qwenfleet.cluster.kube.query import Query

POLL_S: Final = 1.0


def run(
    kube: Kube, pod: KubePod, command: Sequence[str], *, say: Callable[[str], None], limit_s: float
) -> int:
    """Run a command and return its exit status; `say` gets each line of its output.

    Raises KubernetesError if the pod refuses, the connection is lost, or the command has not
    finished after `limit_s`, in which case it may still be running.
    """
    from websocket import WebSocketException

    talk = _open(kube, pod, command)
    give_up_at = time.monotonic() + limit_s
    rest = ""
    try:
        is_open = True
        while is_open:
            is_open = talk.is_open()
            talk.update(timeout=POLL_S)
            # Not `read_all`, which drops the exit status.
            rest += talk.read_stdout(timeout=0) + talk.read_stderr(timeout=0)
            *lines, rest = rest.split("\n")
            for line in lines:
                say(line)
            if time.monotonic() > give_up_at:
                raise KubernetesError(
                    f"the command in pod {pod.name} did not finish within {limit_s:.0f} s",
                    "It may still be running there.",
                )
        if rest:
            say(rest)
        return int(talk.returncode)
    except (WebSocketException, OSError, TypeError, KeyError) as error:  # no exit status came
        raise KubernetesError(
            f"the connection to pod {pod.name} was lost before the command finished",
            "Run it again.",
        ) from error
    finally:
        talk.sock.shutdown()


def _open(kube: Kube, pod: KubePod, command: Sequence[str]) -> Any:
    """Open the web socket. The client's own `stream` reports status 0 for every refusal."""
    from kubernetes.stream.ws_client import WSClient, get_websocket_url
    from websocket import WebSocketBadStatusException, WebSocketException

    host = kube.api.configuration.host
    query = Query("pods/exec", pod.namespace)
    asked = [("container", pod.container), ("stdout", "true"), ("stderr", "true")]
    _, url, headers, _, _ = kube.api.param_serialize(
        method="GET",
        resource_path=Query("pods", pod.namespace).path(pod.name) + "/exec",
        query_params=[*asked, *(("command", word) for word in command)],
        auth_settings=["BearerToken"],
    )
    try:
        return WSClient(kube.api.configuration, get_websocket_url(url), headers, capture_all=False)
    except WebSocketBadStatusException as error:
        body = bytes(error.resp_body or b"").decode(errors="replace")
        raise failures.of_status("create", query, error.status_code, body) from error
    except (WebSocketException, OSError) as error:
        raise failures.unreachable(host, str(error)) from error
