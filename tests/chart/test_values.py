"""The chart refuses values that contradict the plan, the schema or each other."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.chart

FP8 = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
EIGHT = {"tensor_parallel_size": 8, "expert_parallel": True}


def fleet(**model):
    """A fleet of one model on H100."""
    return {"fleet": {"models": [{"id": "coder", "source": FP8, "accelerator": "H100", **model}]}}


def pool(**pool):
    model = {"id": "coder", "source": FP8, "pools": [{"name": "amd", **pool}]}
    return {"fleet": {"models": [model]}}


CONTRADICTIONS = {
    "no layout": (fleet(), "no layout, so the number of GPUs per pod is unknown"),
    "more GPUs than a node has": (
        fleet(layout={"tensor_parallel_size": 16, "expert_parallel": True}),
        "engine-0 needs 16 GPUs on each of 1 nodes, but a node has 8 (accelerators.nvidia."
        "gpusPerNode). Set layout.nodes to 2",
    ),
    "more GPUs than this cluster's nodes have": (
        fleet(layout=EIGHT) | {"accelerators": {"nvidia": {"gpusPerNode": 4}}},
        "needs 8 GPUs on each of 1 nodes, but a node has 4",
    ),
    "nodes that do not divide": (
        fleet(layout=EIGHT | {"nodes": 3}),
        "layout.nodes 3 cannot share 8 GPUs evenly",
    ),
    "a tensor parallel group over nodes": (
        fleet(layout=EIGHT | {"nodes": 2}),
        "a tensor parallel group of 8 would span nodes with 4 GPUs of the engine each",
    ),
    "split FP8 blocks": (
        fleet(layout={"tensor_parallel_size": 8}),
        "8 ranks cannot split an expert's 2560 columns into whole quantization blocks of 128",
    ),
    "split FP8 blocks of a pool": (
        pool(accelerator="AMD-Instinct-MI300X-OAM", layout={"tensor_parallel_size": 8}),
        "engine-0-amd: 8 ranks cannot split an expert's 2560 columns",
    ),
    "split FP8 blocks of a directory": (
        fleet(source=f"/weights/{FP8}", layout={"tensor_parallel_size": 8}),
        "8 ranks cannot split an expert's 2560 columns",
    ),
    "split FP8 blocks of 30B": (
        fleet(source="Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8", layout={"tensor_parallel_size": 4}),
        "4 ranks cannot split an expert's 768 columns",
    ),
    "a context that is too long": (
        fleet(layout=EIGHT, max_model_len=262145),
        f"max_model_len 262145 is above the 262144 tokens of {FP8}",
    ),
    "loopback": (
        {"fleet": {"gateway": {"host": "127.0.0.1"}}},
        "fleet.gateway.host is 127.0.0.1, which a Service cannot reach. Set it to 0.0.0.0.",
    ),
    "keys of its own": (
        {"fleet": {"auth": "none"}},
        "fleet.auth is set, but the chart derives it from auth.mode",
    ),
    "TLS of its own": (
        {"fleet": {"wire": {"tls": {"certificate": "/a", "key": "/b", "authority": "/c"}}}},
        "fleet.wire.tls is set, but the chart derives it from wireTls.existingSecret",
    ),
    "no secret with keys": (
        {"auth": {"mode": "existing"}},
        "auth.mode is existing, but auth.existingSecret is empty",
    ),
    "a secret that is not used": (
        {"auth": {"mode": "none", "existingSecret": "mine"}},
        "auth.existingSecret is mine, but auth.mode is none",
    ),
    "two caches": (
        {"cache": {"create": True, "existingClaim": "mine"}},
        "both cache.create and cache.existingClaim (mine) are set",
    ),
    "weights outside every volume": (
        {"weights": {"s3": {"uri": "s3://models", "directory": "/weights"}}},
        "weights.s3.directory /weights is not below fleet.cache_dir /cache",
    ),
    "a route without a Gateway": (
        {"httpRoute": {"enabled": True}},
        "httpRoute.parentRefs is empty",
    ),
    "a drain of its own": (
        {"fleet": {"gateway": {"drain_s": 60}}},
        "the chart derives it from gateway.drainSeconds",
    ),
    "an override of an unknown group": (
        {"engines": {"engine-7": {"drainSeconds": 10}}},
        "engines.engine-7 is not a worker group of this fleet. Use one of: engine-0.",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_contradiction_is_refused_with_its_numbers(render, refused, values, sentence):
    with pytest.raises(refused) as failure:
        render(values)
    assert sentence in str(failure.value)


OUTSIDE = {
    "an unknown key": ({"gateways": {}}, "gateways"),
    "an unknown key below": ({"cache": {"amount": "1Gi"}}, "amount"),
    "an unknown key of the fleet": ({"fleet": {"gateway": {"replcias": 2}}}, "replcias"),
    "an unknown key of a model": (fleet(layout=EIGHT, max_len=1), "max_len"),
    "an unknown layout": (fleet(layout={"tensor_parallel": 8}), "tensor_parallel"),
    "a wrong type": ({"fleet": {"gateway": {"replicas": "two"}}}, "replicas"),
    "a number out of bounds": ({"fleet": {"gateway": {"replicas": 0}}}, "replicas"),
    "no model": ({"fleet": {"models": []}}, "models"),
    "an unknown mode": ({"auth": {"mode": "open"}}, "mode"),
    "the tag latest": ({"image": {"tag": "latest"}}, "tag"),
    "no digest": ({"image": {"digests": {"cuda": "9f86d0"}}}, "cuda"),
    "root": ({"podSecurity": {"runAsUser": 0}}, "runAsUser"),
}


@pytest.mark.parametrize(("values", "word"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_values_outside_the_schema_are_refused_with_their_path(render, refused, values, word):
    with pytest.raises(refused) as failure:
        render(values)
    assert "values don't meet the specifications of the schema" in str(failure.value)
    assert word in str(failure.value)


def test_checks_plan_disables_the_planner_s_rules_but_not_those_of_pods(render, refused, groups):
    slow = fleet(layout={"tensor_parallel_size": 8}) | {"checks": {"plan": False}}
    assert "engine-0" in groups(render(slow))
    too_many = fleet(layout={"tensor_parallel_size": 16}) | {"checks": {"plan": False}}
    with pytest.raises(refused, match="but a node has 8"):
        render(too_many)


def test_a_long_context_method_removes_the_limit_on_the_context(render, groups):
    stretched = fleet(
        layout=EIGHT,
        max_model_len=1_000_000,
        engine_args={
            "hf_overrides": {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10_000_000,
                    "factor": 4.0,
                    "original_max_position_embeddings": 262_144,
                }
            }
        },
    )
    assert "engine-0" in groups(render(stretched))


def test_large_numbers_stay_whole(render, serve_config):
    """helm reads numbers as floats and would print this one as 3.3554432e+07."""
    values = {"fleet": {"gateway": {"max_body_bytes": 33_554_432}}}
    (application,) = serve_config(render(values))["applications"]
    assert application["args"]["gateway"]["max_body_bytes"] == 33_554_432
    assert isinstance(application["args"]["gateway"]["max_body_bytes"], int)


def test_without_keys_auth_is_none_and_no_secret_is_mounted(render, serve_config, groups):
    documents = render({"auth": {"mode": "none"}})
    assert serve_config(documents)["applications"][0]["args"]["auth"] == "none"
    assert "api-keys" not in str([tree["metadata"]["name"] for tree in documents])
    volumes = groups(documents)["gateway"]["template"]["spec"]["volumes"]
    assert "keys" not in {volume["name"] for volume in volumes}


def test_only_gateways_mount_keys_and_only_their_hashes(render, groups):
    found = groups(render({"auth": {"mode": "existing", "existingSecret": "mine"}}))
    for name, group in found.items():
        secrets = [v["secret"] for v in group["template"]["spec"]["volumes"] if "secret" in v]
        assert [s["secretName"] for s in secrets] == (["mine"] if name == "gateway" else [])
        assert all(s["items"] == [{"key": "keys", "path": "keys"}] for s in secrets)


def test_the_head_does_not_get_the_hub_s_token(render, groups):
    found = groups(render({"weights": {"huggingFace": {"existingSecret": "hub"}}}))
    has = {
        name: "HF_TOKEN" in str(group["template"]["spec"]["containers"])
        for name, group in found.items()
    }
    assert has == {"head": False, "gateway": True, "engine-0": True}


def test_a_group_s_override_takes_precedence_over_engine(render, groups):
    values = fleet(layout=EIGHT) | {
        "engines": {
            "engine-0": {
                "resources": {"requests": {"cpu": "99"}},
                "nodeSelector": {"pool": "coder"},
                "tolerations": [{"key": "spot", "operator": "Exists"}],
            }
        }
    }
    spec = groups(render(values))["engine-0"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["requests"] == {
        "cpu": "99",
        "memory": "16Gi",
        "nvidia.com/gpu": "8",
    }
    assert spec["nodeSelector"] == {"pool": "coder"}
    assert "affinity" not in spec  # it would still require a GPU's label
    assert [one["key"] for one in spec["tolerations"]] == ["spot", "nvidia.com/gpu"]


@pytest.mark.parametrize(
    ("replicas", "gateways", "step"),
    [
        ((1,), 8, 100),
        ((2,), 8, 50),
        ((3,), 8, 34),
        ((8,), 8, 13),
        ((1, 4), 8, 25),
        ((8,), 2, 50),
        ((8,), 1, 100),
    ],
)
def test_an_upgrade_s_step_moves_one_engine_and_one_gateway(render, only, replicas, gateways, step):
    """Clients reach both clusters in proportion to their gateways, so these must move along."""
    models = [{"id": f"m{n}", "replicas": {"min": count}} for n, count in enumerate(replicas)]
    fleet = {"models": models, "gateway": {"replicas": gateways}}
    documents = render({"fleet": fleet, "upgrade": {"gatewayClassName": "istio"}})
    strategy = only(documents, "RayService")["spec"]["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    assert strategy["clusterUpgradeOptions"] == {
        "gatewayClassName": "istio",
        "intervalSeconds": 60,
        "stepSizePercent": step,
        "maxSurgePercent": step,
    }
    assert min(max(replicas), gateways) * step >= 100


def test_without_a_gateway_class_a_new_cluster_takes_over_at_once(render, only):
    strategy = only(render(), "RayService")["spec"]["upgradeStrategy"]
    assert strategy == {"type": "NewCluster"}


def test_an_old_cluster_waits_for_its_longest_stream(render, only):
    values = {"fleet": {"gateway": {"request_timeout_s": 1799.5}}}
    documents = render(values, "", "--set", "httpRoute.enabled=true", "--set-json",
                       'httpRoute.parentRefs=[{"name":"public"}]')  # fmt: skip
    assert (
        only(documents, "RayService")["spec"]["rayClusterDeletionDelaySeconds"] == 1860
    )  # with its body
    (rule,) = only(documents, "HTTPRoute")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "1860s"}


def test_cluster_wide_objects_are_created_only_on_request(render):
    kinds = {tree["kind"] for tree in render()}
    assert "Role" in kinds
    assert not {"ClusterRole", "ClusterRoleBinding"} & kinds
    assert {"ClusterRole", "ClusterRoleBinding"} <= {
        tree["kind"] for tree in render({"rbac": {"nodes": True}})
    }


def test_roles_are_read_only(render):
    for tree in render({"rbac": {"nodes": True}}):
        if tree["kind"] in {"Role", "ClusterRole"}:
            for rule in tree["rules"]:
                assert rule["verbs"] == ["get", "list", "watch"]
                assert rule["resources"] in (["pods"], ["nodes"])


def test_groups_of_one_have_no_disruption_budget(render):
    budgets = [tree for tree in render() if tree["kind"] == "PodDisruptionBudget"]
    assert budgets == []


def test_ray_s_state_is_kept_in_redis_if_one_is_named(render, only):
    values = {"gcsFaultTolerance": {"redisAddress": "redis:6380", "existingSecret": "redis"}}
    documents = render(values)
    cluster = only(documents, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"] == {
        "backend": "redis",
        "redisAddress": "redis:6380",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
    }
    assert 6380 in ports_out(only(documents, "NetworkPolicy", "coder-qwenfleet"))


def ports_out(policy):
    """The ports that pods may reach at any address; each such rule names only ports."""
    rules = [rule for rule in policy["spec"]["egress"] if "to" not in rule]
    return [port["port"] for rule in rules for port in rule["ports"]]


ALWAYS = [53, 53, 443, 6443]


@pytest.mark.parametrize(
    ("endpoint", "more"),
    [
        ("", []),
        ("http://minio.storage:9000", [9000]),
        ("http://minio.storage", [80]),
        ("https://minio.storage:9443/", [9443]),
        ("https://minio.storage", [443]),
        ("http://[fd00::9000]", [80]),
    ],
)
def test_pods_may_reach_the_bucket_and_the_collector(render, only, endpoint, more):
    bucket = {"weights": {"s3": {"uri": "s3://models", "endpoint": endpoint}}}
    assert ports_out(only(render(bucket), "NetworkPolicy", "coder-qwenfleet")) == ALWAYS + more
    if endpoint:
        traced = {"fleet": {"tracing": {"endpoint": endpoint}}}
        assert ports_out(only(render(traced), "NetworkPolicy", "coder-qwenfleet")) == ALWAYS + more


def test_unused_services_open_no_port(render, only):
    unused = {"weights": {"s3": {"endpoint": "http://minio.storage:9000"}}}
    on_loopback = {"fleet": {"tracing": {"sample_ratio": 0.1}}}
    none = {"fleet": {"tracing": None}}
    for values in (unused, on_loopback, none):
        assert ports_out(only(render(values), "NetworkPolicy", "coder-qwenfleet")) == ALWAYS


@pytest.mark.parametrize(
    ("address", "port"), [("redis:6380", 6380), ("redis", 6379), ("redis-2", 6379)]
)
def test_pods_may_reach_redis(render, only, address, port):
    documents = render({"gcsFaultTolerance": {"redisAddress": address}})
    assert ports_out(only(documents, "NetworkPolicy", "coder-qwenfleet")) == [*ALWAYS, port]


@pytest.mark.parametrize("release", ["coder", "qwenfleet", "a" * 53])
def test_names_leave_room_for_what_kuberay_adds(helm, only, release):
    """A Service's name has at most 63 characters, and KubeRay adds -raycluster-xxxxx-head-svc."""
    import yaml

    chart = __file__.replace("tests/chart/test_values.py", "helm/qwenfleet")
    documents = list(yaml.safe_load_all(helm.run("template", release, chart)))
    name = only(documents, "RayService")["metadata"]["name"]
    assert len(name) + len("-raycluster-xxxxx-head-svc") <= 63
