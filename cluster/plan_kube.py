"""The nodes of a Kubernetes cluster, through its official client."""

from __future__ import annotations

import os
from typing import Any, Final

from qwenfleet.cluster.errors import PlanError

TIMEOUT_S: Final = 15.0
IN_A_POD: Final = "KUBERNETES_SERVICE_HOST"
"""Set in every pod by the kubelet."""
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

    settings = client.Configuration()
    try:
        if context is None and IN_A_POD in os.environ:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(context=context, client_configuration=settings)
    except config.ConfigException as e:
        remedy = "Set KUBECONFIG, or name machines with --accelerator and --nodes."
        raise PlanError(f"no Kubernetes configuration was found ({e})", remedy) from e
    api = client.ApiClient(settings)
    try:
        answer = client.CoreV1Api(api).list_node(_request_timeout=TIMEOUT_S)
    except client.ApiException as e:
        said = f"the Kubernetes API answered {e.status} {e.reason}"
        raise PlanError(said, REMEDY) from e
    except HTTPError as e:
        said = f"the Kubernetes API at {settings.host} does not answer ({e})"
        raise PlanError(said, REMEDY) from e
    tree = api.sanitize_for_serialization(answer)
    return list(tree["items"])
