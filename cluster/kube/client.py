"""Client for the API server of a Kubernetes cluster: JSON in, JSON out.

It uses the official client's transport. The official client's generated methods turn each answer
into objects of 100 classes; `objects.py` instead reads the few fields that are used from the JSON,
and knows which of them may be missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from qwenfleet.cluster.kube import failures
from qwenfleet.cluster.kube.query import Query

TIMEOUT_S: Final = 15.0
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Directory in every pod with its token, its namespace and the API server's certificate."""
MALFORMED: Final = (yaml.YAMLError, TypeError, ValueError, AttributeError, LookupError)
"""Errors that the client raises if a kubeconfig is not YAML or has the wrong structure."""


class Kube:
    """One connection to an API server. Every method raises KubernetesError."""

    def __init__(self, api: Any, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        """Default namespace."""

    def items(self, query: Query) -> list[dict[str, Any]]:
        return self.list(query)[0]

    def list(self, query: Query) -> tuple[list[dict[str, Any]], str]:
        """Objects, and the resourceVersion to watch them from."""
        tree = self._json("list", query, "GET", query.path(), query.selectors)
        return list(tree.get("items") or []), str(tree["metadata"].get("resourceVersion", ""))

    def get(self, query: Query, name: str) -> dict[str, Any]:
        return self._json("get", query, "GET", query.path(name))

    def patch(
        self, query: Query, name: str, body: Mapping[str, Any], *, is_trial: bool = False
    ) -> dict[str, Any]:
        """Merge `body` into an object (RFC 7396); a trial is only checked by the server."""
        asked = {"dryRun": "All"} if is_trial else {}
        return self._json("patch", query, "PATCH", query.path(name), asked, dict(body))

    def watch(
        self, query: Query, version: str, *, lasts_s: float, silence_s: float
    ) -> Iterator[dict[str, Any]]:
        """Events {type, object} after `version`, until the server closes the watch after `lasts_s`.
        Also raises KubernetesError if the server sends nothing for `silence_s`.
        """
        from kubernetes.watch.watch import iter_resp_lines

        asked = {
            **query.selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(int(lasts_s)),
        }
        with failures.translated("watch", query, self.api.configuration.host):
            response = self._request("GET", query.path(), asked, None, (TIMEOUT_S, silence_s))
            try:
                for line in iter_resp_lines(response.response):
                    if not line:
                        continue
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise failures.of_event(query, event["object"])
                    yield event
            finally:
                response.response.close()

    def _json(
        self,
        verb: str,
        query: Query,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        with failures.translated(verb, query, self.api.configuration.host):
            response = self._request(method, path, parameters or {}, body, TIMEOUT_S)
            tree = json.loads(response.read())
            return {**tree, "metadata": dict(tree["metadata"])}

    def _request(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str],
        body: dict[str, Any] | None,
        timeout: float | tuple[float, float],
    ) -> Any:
        from kubernetes.client import ApiException

        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        request = self.api.param_serialize(
            method=method,
            resource_path=path,
            query_params=list(parameters.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self.api.call_api(*request, _request_timeout=timeout)
        if not 200 <= response.status <= 299:
            body_text = response.read().decode(errors="replace")
            raise ApiException(status=response.status, reason=body_text)
        return response


def connect(context: str | None = None, namespace: str | None = None) -> Kube:
    """Connect with the named or current context of the kubeconfig, or, in a pod without a
    kubeconfig, as its service account. Raises KubernetesError if no configuration exists or if it
    cannot be read."""
    from kubernetes import client, config

    own = client.Configuration()
    own.retries = 0  # a command fails at once; a watch has its own backoff
    files = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    has_files = any(Path(file).is_file() for file in files.split(os.pathsep))
    try:
        if context is None and is_in_pod() and not has_files:
            config.load_incluster_config(client_configuration=own)
            chosen = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
        else:
            config.load_kube_config(files, context=context, client_configuration=own)
            chosen = _namespace_of(files, context)
    except (config.ConfigException, OSError) as error:
        raise failures.unconfigured(str(error), context) from error
    except MALFORMED as error:
        raise failures.unreadable(files, error) from error
    return Kube(client.ApiClient(own), namespace or chosen or "default")


def is_in_pod() -> bool:
    """True if this process has a service account's token, which Kubernetes mounts in pods."""
    return (SERVICE_ACCOUNT / "token").is_file() and "KUBERNETES_SERVICE_HOST" in os.environ


def _namespace_of(files: str, context: str | None) -> str:
    from kubernetes import config

    contexts, active = config.list_kube_config_contexts(files)
    if context is not None:
        active = next(known for known in contexts if known["name"] == context)
    return str(active["context"].get("namespace", ""))
