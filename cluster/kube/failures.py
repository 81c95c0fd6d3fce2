"""KubernetesErrors for the failures of the Kubernetes API: what each means, and its remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qwenfleet.cluster.errors import KubernetesError, one_line
from qwenfleet.cluster.kube.query import RAY_RESOURCES, resource_name

if TYPE_CHECKING:
    from qwenfleet.cluster.kube.query import Query


@contextmanager
def translated(verb: str, query: Query, host: str) -> Iterator[None]:
    """Turn errors of the client and its transport into KubernetesErrors inside the block."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise of_status(verb, query, int(error.status or 0), str(error.reason)) from error
    except (HTTPError, OSError) as error:
        raise unreachable(host, str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise KubernetesError(
            f"the server at {host} is not a Kubernetes API server ({type(error).__name__})",
            "Check the server's address in the kubeconfig.",
        ) from error


def of_status(verb: str, query: Query, status: int, body: str) -> KubernetesError:
    """The error for an HTTP `status`; `body` is the server's Status object, or a proxy's text."""
    where = f" in namespace {query.namespace}" if query.namespace else " of the cluster"
    what = f"{verb} {query.resource}{where}"
    message = _message(body)
    if status == 403:
        scope = f" -n {query.namespace}" if query.namespace else ""
        return KubernetesError(
            f"the Kubernetes API does not let you {what} (403: {message})",
            f"Ask for a role with the verb `{verb}` on `{resource_name(query.resource)}`; check "
            f"with `kubectl auth can-i {verb} {resource_name(query.resource)}{scope}`.",
            status,
        )
    if status == 401:
        return KubernetesError(
            f"the Kubernetes API rejected your credentials (401: {message})",
            "Log in again: the kubeconfig's token or certificate is missing or has expired.",
            status,
        )
    if status == 404 and query.resource in RAY_RESOURCES and verb == "list":
        return KubernetesError(
            f"this cluster has no resource {resource_name(query.resource)}: KubeRay's CRDs are not "
            "installed, or are older than ray.io/v1",
            "Install KubeRay's operator 1.7 or newer, with its CRDs.",
            status,
        )
    return KubernetesError(
        f"the Kubernetes API refused to {what} ({status}: {message})",
        "Try again, and check the API server's log.",
        status,
    )


def of_event(query: Query, status: dict[str, Any]) -> KubernetesError:
    """The error for a watch that ended with an ERROR event, whose object is a Status."""
    code = int(status.get("code", 0))
    return of_status("watch", query, code, json.dumps(status))


def unreachable(host: str, reason: str) -> KubernetesError:
    return KubernetesError(
        f"the Kubernetes API at {host} does not answer ({one_line(reason, 200)})",
        "Check that the cluster is running and reachable: `kubectl get --raw /readyz`.",
    )


def unconfigured(reason: str, context: str | None) -> KubernetesError:
    chosen = f"no context '{context}'" if context else "no cluster"
    return KubernetesError(
        f"the Kubernetes configuration names {chosen} ({reason})",
        "Set KUBECONFIG, or use one of the contexts that `kubectl config get-contexts` lists.",
    )


def unreadable(files: str, error: Exception) -> KubernetesError:
    reason = one_line(error, 200)
    return KubernetesError(
        f"the kubeconfig {files} cannot be read ({type(error).__name__}: {reason})",
        "Fix it (`kubectl config view` checks it), or set KUBECONFIG to another file.",
    )


def _message(body: str) -> str:
    try:
        message = json.loads(body).get("message") or "no reason given"
    except (ValueError, AttributeError):
        message = body or "no reason given"
    return one_line(message)
