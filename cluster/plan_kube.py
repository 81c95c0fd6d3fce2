"""The nodes of a Kubernetes cluster, through its official client."""

from __future__ import annotations

from typing import Any, Final

from qwenfleet.cluster.errors import PlanError

TIMEOUT_S: Final = 15.0
REMEDY: Final = (
    "Check with `kubectl get nodes`; the service account or user must be allowed to list nodes."
)


def read_nodes(context: str | None = None) -> list[dict[str, Any]]:
    """Every node as the API server's JSON, by the kubeconfig's current context or the one named,
    or as the service account of the pod that this runs in.

    Raises PlanError when there is no configuration, no answer, or no permission.
    """
    from kubernetes import client, config
    from urllib3.exceptions import HTTPError

    try:
        config.load_config(context=context)
    except config.ConfigException as e:
        remedy = "Set KUBECONFIG, or name machines with --accelerator and --nodes."
        raise PlanError(f"no Kubernetes configuration was found ({e})", remedy) from e
    api = client.ApiClient()
    try:
        answer = client.CoreV1Api(api).list_node(_request_timeout=TIMEOUT_S)
    except client.ApiException as e:
        said = f"the Kubernetes API answered {e.status} {e.reason}"
        raise PlanError(said, REMEDY) from e
    except HTTPError as e:
        said = f"the Kubernetes API at {api.configuration.host} does not answer ({e})"
        raise PlanError(said, REMEDY) from e
    tree = api.sanitize_for_serialization(answer)
    return list(tree["items"])
