"""What the Kubernetes API's failures mean, and the way out of each, as KubernetesErrors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.kube.query import RAY_RESOURCES, resource_name

if TYPE_CHECKING:
    from qwenfleet.cluster.kube.query import Query


@contextmanager
def translated(verb: str, query: Query, host: str) -> Iterator[None]:
    """Inside, the client's and the transport's errors become KubernetesErrors."""
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
            f"what answers at {host} is not a Kubernetes API server ({type(error).__name__})",
            "Check the server's address in the kubeconfig.",
        ) from error


def of_status(verb: str, query: Query, status: int, body: str) -> KubernetesError:
    """The API server answered `status`; `body` is its Status object, or what a proxy said."""
    where = f" in namespace {query.namespace}" if query.namespace else " of the cluster"
    what = f"{verb} {query.resource}{where}"
    said = _message(body)
    if status == 403:
        scope = f" -n {query.namespace}" if query.namespace else ""
        return KubernetesError(
            f"the Kubernetes API does not let you {what} (403: {said})",
            f"Ask for a role with the verb `{verb}` on `{resource_name(query.resource)}`; "
            f"`kubectl auth can-i {verb} {resource_name(query.resource)}{scope}` says whether you "
            "have it.",
            status,
        )
    if status == 401:
        return KubernetesError(
            f"the Kubernetes API does not know you (401: {said})",
            "Log in again: the kubeconfig's token or certificate is missing or has expired.",
            status,
        )
    if status == 404 and query.resource in RAY_RESOURCES and verb == "list":
        return KubernetesError(
            f"this cluster does not know {resource_name(query.resource)}: KubeRay's CRDs are not "
            "installed, or are too old to have ray.io/v1",
            "Install KubeRay's operator 1.7 or newer, with its CRDs.",
            status,
        )
    return KubernetesError(
        f"the Kubernetes API refused to {what} ({status}: {said})",
        "Try again; the API server's log says more.",
        status,
    )


def of_event(query: Query, status: dict[str, Any]) -> KubernetesError:
    """A watch ended with an ERROR event, whose object is a Status."""
    code = int(status.get("code", 0))
    return of_status("watch", query, code, json.dumps(status))


def unreachable(host: str, said: str) -> KubernetesError:
    return KubernetesError(
        f"the Kubernetes API at {host} does not answer ({' '.join(said.split())[:200]})",
        "Check that the cluster runs and is reached from here: `kubectl get --raw /readyz`.",
    )


def unconfigured(said: str, context: str | None) -> KubernetesError:
    chosen = f"no context '{context}'" if context else "no cluster"
    return KubernetesError(
        f"the Kubernetes configuration names {chosen} ({said})",
        "Set KUBECONFIG or name one of the contexts of `kubectl config get-contexts`.",
    )


def unreadable(files: str, error: Exception) -> KubernetesError:
    said = " ".join(str(error).split())[:200]
    return KubernetesError(
        f"the kubeconfig {files} cannot be read ({type(error).__name__}: {said})",
        "Mend it until `kubectl config view` shows it, or set KUBECONFIG to another.",
    )


def _message(body: str) -> str:
    try:
        said = json.loads(body).get("message") or "no reason given"
    except (ValueError, AttributeError):
        said = body or "no reason given"
    return " ".join(str(said).split())[:300]
