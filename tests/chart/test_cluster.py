"""The chart's checks with a cluster: a real helm, and a small API server on loopback that serves
discovery and secrets."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.chart

CHART = Path(__file__).resolve().parents[2] / "helm" / "qwenfleet"
RAY = {"rayservices": "RayService", "rayclusters": "RayCluster", "raycronjobs": "RayCronJob"}
GROUPS = {
    "v1": {
        "secrets": "Secret",
        "pods": "Pod",
        "services": "Service",
        "serviceaccounts": "ServiceAccount",
    },
    "ray.io/v1": RAY,
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy", "ingresses": "Ingress"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "rbac.authorization.k8s.io/v1": {"roles": "Role", "rolebindings": "RoleBinding"},
}


OWNER = {"meta.helm.sh/release-name": "coder", "meta.helm.sh/release-namespace": "ml"}
"""Annotations by which helm knows the objects of a release."""


class Api:
    """Objects of the server, which tests change."""

    def __init__(self):
        self.groups = {name: dict(kinds) for name, kinds in GROUPS.items()}
        self.secrets = {}
        self.objects = {}
        self.url = ""

    def add_object(self, version, plural, tree):
        """Serve an object of namespace ml."""
        root = "api" if version == "v1" else "apis"
        name = tree["metadata"]["name"]
        path = f"/{root}/{version}/namespaces/ml/{plural}/{name}"
        self.objects[path] = {"apiVersion": version, **copy.deepcopy(tree)}

    def add_secret(self, name, **data):
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        metadata = {"name": name, "namespace": "ml"}
        self.secrets[name] = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "data": encoded,
        }

    def answer(self, path):
        """Return the object at a path, or None."""
        if path == "/version":
            return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            names = [name.split("/") for name in self.groups if "/" in name]
            return {"kind": "APIGroupList", "groups": [group(*parts) for parts in names]}
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if version in self.groups:
            kinds = self.groups[version].items()
            return {
                "kind": "APIResourceList",
                "groupVersion": version,
                "resources": [resource(name, kind) for name, kind in kinds],
            }
        if path in self.objects:
            return self.objects[path]
        secrets = "/api/v1/namespaces/ml/secrets"
        if path == secrets:
            return {"apiVersion": "v1", "kind": "SecretList", "items": [*self.secrets.values()]}
        return self.secrets.get(path.removeprefix(f"{secrets}/"))


def group(name, version):
    one = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [one], "preferredVersion": one}


def resource(name, kind):
    verbs = ["create", "get", "list", "patch"]
    return {"name": name, "kind": kind, "namespaced": True, "singularName": "", "verbs": verbs}


@pytest.fixture
def api():
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = api.answer(self.path.partition("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
            body = json.dumps(found or missing | {"reason": "NotFound"}).encode()
            self.send_response(200 if found else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield api
    server.shutdown()
    server.server_close()


@pytest.fixture
def install(api, helm, tmp_path):
    """Render as `helm install` does, with look-ups in the cluster."""
    config = tmp_path / "kubeconfig"
    named = {"name": "test"}
    context = {"cluster": "test", "user": "test", "namespace": "ml"}
    tree = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [named | {"cluster": {"server": api.url}}],
        "users": [named | {"user": {}}],
        "contexts": [named | {"context": context}],
        "current-context": "test",
    }
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")

    def installed(*options):
        text = helm.run(
            *("template", "coder", CHART, "--namespace", "ml", "--dry-run=server"),
            *("--disable-openapi-validation", "--kubeconfig", config, *options),
        )
        return [tree for tree in yaml.safe_load_all(text) if tree]

    return installed


def test_a_cluster_with_kuberay_accepts_the_chart(install, only):
    assert only(install(), "RayService")


def test_absent_crds_are_reported_on_a_first_install_into_an_empty_namespace(api, install, refused):
    assert api.secrets == {}, "nothing is there to tell a cluster by but that it answers"
    del api.groups["ray.io/v1"]
    with pytest.raises(refused, match=r"KubeRay's CRDs are absent\. Install KubeRay 1\.7"):
        install()


def test_old_crds_are_reported(api, install, refused):
    del api.groups["ray.io/v1"]["raycronjobs"]
    with pytest.raises(refused, match=r"CRDs are older than 1\.6 .* authOptions"):
        install()


def test_the_check_of_crds_can_be_disabled(api, install, only):
    del api.groups["ray.io/v1"]["raycronjobs"]
    assert only(install("--set", "checks.crds=never"), "RayService")


def test_without_a_cluster_crds_are_checked_only_on_request(helm, render, refused):
    assert render()
    with pytest.raises(refused, match="CRDs are absent"):
        render({"checks": {"crds": "always"}})
    names = ("ray.io/v1/RayService", "ray.io/v1/RayCronJob")
    options = [part for name in names for part in ("--api-versions", name)]
    assert render({"checks": {"crds": "always"}}, "", *options)


def test_an_incremental_upgrade_needs_the_gateway_api(api, install, refused, only):
    by_steps = ("--set", "upgrade.gatewayClassName=istio")
    with pytest.raises(refused, match="this cluster has no Gateway API"):
        install(*by_steps)
    api.groups["gateway.networking.k8s.io/v1"] = {"httproutes": "HTTPRoute"}
    assert only(install(*by_steps), "RayService")


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("auth.existingSecret", "keys"),
        ("rayAuth.existingSecret", "auth_token"),
        ("weights.huggingFace.existingSecret", "token"),
        ("gcsFaultTolerance.existingSecret", "password"),
    ],
)
def test_a_missing_secret_or_entry_is_named(api, install, refused, value, key):
    options = ["--set", f"{value}=mine"]
    if value.startswith("auth."):
        options += ["--set", "auth.mode=existing"]
    assert api.secrets == {}, "as in a first install"
    missing = f"{value} names secret mine, which does not exist in namespace ml"
    with pytest.raises(refused, match=missing):
        install(*options)
    api.add_secret("mine", other="x")
    entry = rf"secret mine \({value}\) has no key {key}. It has: other"
    with pytest.raises(refused, match=entry):
        install(*options)
    api.add_secret("mine", **{key: "x"})
    assert install(*options)


def test_every_file_of_tls_must_be_in_its_secret(api, install, refused):
    options = ("--set", "wireTls.existingSecret=mine")
    files = {"tls.crt": "x", "tls.key": "x", "ca.crt": "x"}
    for missing in files:
        api.add_secret("mine", **{name: text for name, text in files.items() if name != missing})
        with pytest.raises(refused, match=rf"\(wireTls.existingSecret\) has no key {missing}"):
            install(*options)
    api.add_secret("mine", **files)
    assert install(*options)


def test_generated_secrets_are_kept_by_an_upgrade(api, install, only):
    first = install()
    for name in ("coder-qwenfleet-api-keys", "coder-qwenfleet-ray-auth"):
        secret = copy.deepcopy(only(first, "Secret", name))
        secret["metadata"]["annotations"] = dict(OWNER)
        api.secrets[name] = secret
    second = install()
    for name in ("coder-qwenfleet-api-keys", "coder-qwenfleet-ray-auth"):
        assert only(second, "Secret", name)["data"] == only(first, "Secret", name)["data"]


def test_the_fleet_accepts_the_hash_of_a_generated_key(render, only, tmp_path):
    from qwenfleet.cluster.config.auth import hash_of, read_keys

    data = only(render(), "Secret", "coder-qwenfleet-api-keys")["data"]
    key = base64.b64decode(data["key"]).decode()
    assert key.startswith("qf-")
    assert len(key) == 46
    file = tmp_path / "keys"
    file.write_bytes(base64.b64decode(data["keys"]))
    assert read_keys(str(file)) == (hash_of(key),)
    assert hash_of(key).removeprefix("sha256:") == hashlib.sha256(key.encode()).hexdigest()


ROCKSDB = ("--set", "gcsFaultTolerance.rocksdb.enabled=true")
REDIS = ("--set", "gcsFaultTolerance.redisAddress=redis:6379")


def run_release(api, documents, only):
    """Pretend that what was rendered runs, with the Service that KubeRay makes of it."""
    running = only(documents, "RayService")
    running["metadata"]["annotations"] = dict(OWNER)
    api.add_object("ray.io/v1", "rayservices", running)
    service = running["spec"]["serveService"]
    api.add_object("v1", "services", {"kind": "Service", **service})
    return running


@pytest.mark.parametrize(("old", "new"), [(REDIS, ROCKSDB), (ROCKSDB, REDIS)])
def test_a_store_does_not_change_to_the_other_at_once(api, install, refused, only, old, new):
    """Its field is immutable in KubeRay's CRD, whose message names neither value nor way."""
    run_release(api, install(*old), only)
    with pytest.raises(refused, match=r"keeps Ray's state in \w+, .* Upgrade once with neither"):
        install(*new)
    assert install(*old)
    run_release(api, install(), only)
    assert install(*new)


def test_a_changed_service_is_refused_until_it_is_changed_by_hand(api, install, refused, only):
    """KubeRay updates its Service only when a new cluster takes over, and annotations never."""
    run_release(api, install(), only)
    typed = ("--set", "service.type=LoadBalancer")
    with pytest.raises(refused, match=r"is a ClusterIP, .* Run `kubectl -n ml patch service coder"):
        install(*typed)
    noted = ("--set", "service.annotations.team=a")
    with pytest.raises(refused, match=r"has team, .* annotate --overwrite service .* 'team=a'"):
        install(*noted)
    annotations = {"team": "a", "made-by": "a load balancer"}
    patched = {
        "kind": "Service",
        "metadata": {"name": "coder-qwenfleet-serve-svc", "annotations": annotations},
        "spec": {"type": "LoadBalancer"},
    }
    api.add_object("v1", "services", patched)
    assert install(*typed, *noted)


def test_an_install_waits_for_the_release_that_is_still_being_deleted(api, install, refused, only):
    running = run_release(api, install(), only)
    running["metadata"]["deletionTimestamp"] = "2026-11-29T12:00:00Z"
    api.add_object("ray.io/v1", "rayservices", running)
    with pytest.raises(refused, match=r"still being deleted\. Wait for it \(kubectl -n ml wait"):
        install()
