"""Client of the Kubernetes API over HTTP: its requests, and a sentence for each failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.kube import client as kube
from qwenfleet.cluster.kube.query import Query
from qwenfleet.cluster.local.ports import free_ports


def node(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec}


def failure(query: Query, context: str | None = None) -> KubernetesError:
    with pytest.raises(KubernetesError) as caught:
        kube.connect(context).items(query)
    return caught.value


def test_objects_are_listed_with_the_version_to_watch_from(kubernetes_api: Any) -> None:
    kubernetes_api.put("nodes", node("n1"))
    kubernetes_api.put("nodes", node("n2"))
    items, version = kube.connect().list(Query("nodes"))
    assert [item["metadata"]["name"] for item in items] == ["n1", "n2"]
    assert version == items[-1]["metadata"]["resourceVersion"]


def test_selectors_filter_objects(kubernetes_api: Any) -> None:
    for name, address in (("a", "10.0.0.1"), ("b", "10.0.0.2")):
        pod = {"metadata": {"name": name, "labels": {name: "x"}}, "status": {"podIP": address}}
        kubernetes_api.put("pods", pod)
    client = kube.connect()
    by_field = client.items(Query("pods", "fleet", fields="status.podIP=10.0.0.2"))
    by_label = client.items(Query("pods", labels="a"))
    assert [pod["metadata"]["name"] for pod in (*by_field, *by_label)] == ["b", "a"]


def test_a_patch_merges(kubernetes_api: Any) -> None:
    kubernetes_api.put("nodes", node("n1", podCIDR="10.1.0.0/24"))
    kube.connect().patch(Query("nodes"), "n1", {"spec": {"unschedulable": True}})
    spec = kubernetes_api.get("nodes", "n1")["spec"]
    assert spec == {"podCIDR": "10.1.0.0/24", "unschedulable": True}


@pytest.mark.parametrize(
    ("context", "given", "namespace"),
    [("test", None, "fleet"), ("test", "other", "other"), ("bare", None, "default")],
)
def test_the_namespace_is_the_given_one_or_the_contexts_or_default(
    kubernetes_api: Any, context: str, given: str | None, namespace: str
) -> None:
    assert kube.connect(context, given).namespace == namespace


def test_a_refusal_names_verb_and_resource(kubernetes_api: Any) -> None:
    kubernetes_api.denied = {("list", "pods"), ("list", "nodes"), ("list", "rayservices")}
    error = failure(Query("pods", "fleet"))
    assert error.api_status == 403
    assert str(error) == (
        "the Kubernetes API does not let you list pods in namespace fleet (403: pods is "
        'forbidden: User "me" cannot list resource "pods"). Ask for a role with the verb `list` '
        "on `pods`; check with `kubectl auth can-i list pods -n fleet`."
    )
    assert "list nodes of the cluster" in str(failure(Query("nodes")))
    assert "`rayservices.ray.io`" in str(failure(Query("rayservices", "fleet")))


def test_missing_crds_are_named(kubernetes_api: Any) -> None:
    kubernetes_api.absent = {"rayservices"}
    error = failure(Query("rayservices", "fleet"))
    assert "has no resource rayservices.ray.io: KubeRay's CRDs are not installed" in str(error)
    assert "Install KubeRay's operator 1.7 or newer" in str(error)


def test_a_wrong_token_differs_from_a_missing_permission(kubernetes_api: Any) -> None:
    kubernetes_api.token = "another"
    assert "rejected your credentials (401: Unauthorized). Log in again" in str(
        failure(Query("nodes"))
    )


def test_a_missing_object_is_an_error_with_status_404(kubernetes_api: Any) -> None:
    with pytest.raises(KubernetesError, match=r'404: nodes "n9" not found') as caught:
        kube.connect().get(Query("nodes"), "n9")
    assert caught.value.api_status == 404


def test_a_server_that_does_not_answer_is_reported_at_once(
    kubernetes_api: Any, tmp_path: Path
) -> None:
    (port,) = free_ports(1, "127.0.0.1")
    config = tmp_path / "kubeconfig"
    address = kubernetes_api.url.rpartition(":")[0]
    config.write_text(config.read_text().replace(kubernetes_api.url, f"{address}:{port}"))
    error = failure(Query("nodes"))
    assert str(error).startswith(f"the Kubernetes API at {address}:{port} does not answer (")
    assert error.api_status is None


@pytest.mark.parametrize("reported", ["<html>Welcome</html>", '"JSON"', "[]", "{}"])
def test_a_server_that_is_not_an_api_server_is_reported(kubernetes_api: Any, reported: str) -> None:
    kubernetes_api.nonsense = reported
    error = failure(Query("pods"))
    assert str(error).startswith(f"the server at {kubernetes_api.url} is not a Kubernetes API")


def test_a_missing_configuration_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kubernetes_api: Any
) -> None:
    assert "names no context 'moon'" in str(failure(Query("nodes"), "moon"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    error = failure(Query("nodes"))
    assert "the Kubernetes configuration names no cluster" in str(error)
    assert "Set KUBECONFIG" in str(error)


GOOD = "{clusters: [{name: c, cluster: {server: 'http://x'}}], users: [], current-context: t, "


@pytest.mark.parametrize(
    "text",
    [
        "clusters: [",
        "\t",
        "just words",
        "[1, 2]",
        "7",
        "",
        "{clusters: 3, contexts: 4, users: 5, current-context: 6}",
        GOOD + "contexts: [{name: t, context: null}]}",
        GOOD + "contexts: [t]}",
        GOOD + "contexts: null}",
    ],
)
def test_a_broken_kubeconfig_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(KubernetesError, match=r"\b[Ss]et KUBECONFIG"):
        kube.connect()


def test_a_binary_kubeconfig_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config"
    file.write_bytes(b"\xff\xfe\x00\x00")
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(KubernetesError, match=rf"the kubeconfig {file} cannot be read \(Unicode"):
        kube.connect()


def test_a_pod_connects_as_its_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert not kube.is_in_pod()
    (tmp_path / "token").write_text("t")
    assert kube.is_in_pod()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert not kube.is_in_pod()
