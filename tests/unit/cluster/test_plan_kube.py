"""The official client against a small HTTP server that answers as an API server does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from qwenfleet.cluster.errors import PlanError
from qwenfleet.cluster.plan_kube import read_nodes
from qwenfleet.cluster.plan_machines import from_kubernetes

NODES = {
    "kind": "NodeList",
    "apiVersion": "v1",
    "metadata": {"resourceVersion": "1"},
    "items": [
        {
            "metadata": {
                "name": "gpu-1",
                "labels": {"nvidia.com/gpu.product": "NVIDIA-H200", "nvidia.com/gpu.count": "8"},
            },
            "spec": {"podCIDR": "10.0.0.0/24"},
            "status": {
                "allocatable": {"cpu": "190", "memory": "2Ti", "nvidia.com/gpu": "8"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
    ],
}


class ApiServer(BaseHTTPRequestHandler):
    """Answers `/api/v1/nodes` to who has the token."""

    def do_GET(self) -> None:
        is_known = self.headers.get("Authorization") == "Bearer good"
        is_nodes = self.path.partition("?")[0] == "/api/v1/nodes"
        status = 403 if not is_known else 200 if is_nodes else 404
        said = NODES if status == 200 else {"kind": "Status", "code": status}
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ApiServer) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def kubeconfig(path: Path, server: str, token: str = "good") -> str:
    file = path / "kubeconfig"
    tree = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
    }
    file.write_text(yaml.safe_dump(tree))
    return str(file)


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    def set_up(server: str, token: str = "good") -> None:
        file = kubeconfig(tmp_path, server, token)
        # The client reads KUBECONFIG when it is imported.
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", file)

    return set_up  # type: ignore[return-value]


def test_the_nodes_of_a_cluster_become_machines(server: str, configure) -> None:
    configure(server)
    found = from_kubernetes(read_nodes())
    assert [kind.name for kind in found.kinds] == ["8 x H200"]


def test_who_may_not_list_nodes_is_told(server: str, configure) -> None:
    configure(server, token="bad")
    with pytest.raises(PlanError, match=r"answered 403 .*allowed to list nodes"):
        read_nodes()


def test_an_api_server_that_is_away_is_told_by_its_address(configure) -> None:
    configure("http://127.0.0.1:9")
    with pytest.raises(PlanError, match=r"http://127\.0\.0\.1:9 does not answer"):
        read_nodes()


def test_a_context_that_is_not_there_is_told(server: str, configure) -> None:
    configure(server)
    with pytest.raises(PlanError, match="no Kubernetes configuration was found"):
        read_nodes("elsewhere")


def test_in_a_pod_without_a_service_account_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(PlanError, match="no Kubernetes configuration was found"):
        read_nodes()
