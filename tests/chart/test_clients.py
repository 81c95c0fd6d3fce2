"""Clients enter through gateways only, whatever Services KubeRay makes."""

from __future__ import annotations

import pytest

from tests.chart.operator_replay import endpoints, pods, services_of_kuberay

pytestmark = pytest.mark.chart

BY_STEPS = {"upgrade": {"gatewayClassName": "istio"}}
CLUSTERS = ("coder-old", "coder-new")


def every_endpoint(documents, only):
    """The group and port of every endpoint of every Service of two Ray clusters."""
    service = only(documents, "RayService")
    found = set()
    for cluster in CLUSTERS:
        made = services_of_kuberay(service, cluster)
        rendered = [tree for tree in documents if tree["kind"] == "Service"]
        for one in (*made, *rendered):
            found |= endpoints(one, pods(service, cluster))
    return found


@pytest.mark.parametrize("values", [{}, BY_STEPS], ids=["at once", "by steps"])
@pytest.mark.parametrize("case", ["h100-1-30b", "h100-2x8-480b-bf16", "mi300x-8-480b-fp8"])
def test_no_service_sends_clients_to_the_proxy_of_an_engine(render, only, case, values):
    """Each engine's pod has a proxy of Ray Serve, on the same port as those of gateways."""
    documents = render(values, case)
    found = every_endpoint(documents, only)
    assert {group for group, port in found if port == 8000} == {"gateway"}


def test_nothing_listens_where_kuberay_s_own_services_lead_in_upgrades_by_steps(
    render, only, groups
):
    documents = render(BY_STEPS, "h100-1-30b")
    service = only(documents, "RayService")
    (port,) = {
        port
        for one in services_of_kuberay(service, "coder-old")
        for _, port in endpoints(one, pods(service, "coder-old"))
    }
    for name, group in groups(documents).items():
        (container,) = group["template"]["spec"]["containers"]
        listening = {one["containerPort"] for one in container["ports"] if one["name"] != "serve"}
        listening |= {int(v["value"]) for v in container["env"] if v["name"].endswith("_PORT")}
        assert port not in listening | {8000, 52365}, name


def test_in_upgrades_by_steps_the_chart_s_service_has_the_gateways_of_both_clusters(render, only):
    documents = render(BY_STEPS | {"service": {"type": "LoadBalancer"}}, "h100-1-30b")
    service = only(documents, "Service")
    assert service["spec"]["type"] == "LoadBalancer"
    for cluster in CLUSTERS:
        found = endpoints(service, pods(only(documents, "RayService"), cluster))
        assert found == {("gateway", 8000)}


@pytest.mark.parametrize("values", [{}, BY_STEPS], ids=["at once", "by steps"])
def test_everything_that_names_a_service_names_the_one_with_gateways(render, only, values):
    more = {
        "ingress": {"enabled": True},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
    }
    documents = render(values | more, "h100-1-30b")
    service = only(documents, "RayService")["spec"].get("serveService") or only(
        documents, "Service"
    )
    name = service["metadata"]["name"]
    (path,) = only(documents, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    (rule,) = only(documents, "HTTPRoute")["spec"]["rules"]
    (test,) = only(documents, "Pod")["spec"]["containers"]
    assert path["backend"]["service"]["name"] == name
    assert rule["backendRefs"][0]["name"] == name
    assert f"http://{name}:8000" in test["args"]


def test_without_upgrades_by_steps_kuberay_makes_the_only_service(render):
    assert not [tree for tree in render() if tree["kind"] == "Service"]


def test_only_gateways_may_be_reached_by_clients(render, only):
    peers = [{"namespaceSelector": {"matchLabels": {"team": "editors"}}}]
    documents = render({"networkPolicy": {"clients": peers}})
    fleet = only(documents, "NetworkPolicy", "coder-qwenfleet")["spec"]
    clients = only(documents, "NetworkPolicy", "coder-qwenfleet-clients")["spec"]
    assert 8000 not in {port["port"] for rule in fleet["ingress"] for port in rule.get("ports", ())}
    assert clients["podSelector"]["matchLabels"]["qwenfleet.io/component"] == "gateway"
    assert clients["ingress"] == [{"ports": [{"port": 8000}], "from": peers}]


def test_every_pod_of_an_engine_is_ready_with_its_raylet(render, groups):
    """Serve starts a proxy on nodes with a replica only, so the second node has none to ask."""
    found = groups(render(None, "h100-2x8-480b-bf16"))
    probes = {
        name: group["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]
        for name, group in found.items()
    }
    assert probes["engine-0"] == {"path": "/api/local_raylet_healthz", "port": 52365}
    assert probes["gateway"] == {"path": "/-/healthz", "port": 8404}


def test_a_budget_counts_the_pods_of_an_engine_of_two_nodes(render, only, two_node_model):
    values = {"fleet": {"models": [two_node_model | {"replicas": {"min": 3}}]}}
    budget = only(render(values), "PodDisruptionBudget", "coder-qwenfleet-engine-0")
    assert budget["spec"]["minAvailable"] == 4
