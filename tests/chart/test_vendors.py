"""Differences between the pods of NVIDIA, AMD and CPU nodes."""

from __future__ import annotations

import pytest

from qwenfleet.cluster.hardware.accelerators import ACCELERATORS

pytestmark = pytest.mark.chart

LAYOUT = {"tensor_parallel_size": 8, "expert_parallel": True}
MIXED = {
    "fleet": {
        "models": [
            {
                "id": "coder",
                "source": "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",
                "pools": [
                    {"name": "h100", "accelerator": "H100", "layout": LAYOUT},
                    {"name": "mi300x", "accelerator": "AMD-Instinct-MI300X-OAM", "layout": LAYOUT},
                ],
            },
            {"id": "smollm2-135m-instruct"},
        ]
    },
    "accelerators": {"amd": {"supplementalGroups": [44, 109]}},
}


@pytest.fixture
def specs(render, groups):
    return {name: group["template"]["spec"] for name, group in groups(render(MIXED)).items()}


def test_each_pool_has_a_group_and_the_image_of_its_vendor(specs):
    images = {name: spec["containers"][0]["image"] for name, spec in specs.items()}
    variants = {name: image.rpartition("-")[2] for name, image in images.items()}
    assert variants == {
        "head": "cpu",
        "gateway": "cpu",
        "engine-0-h100": "cuda",
        "engine-0-mi300x": "rocm",
        "engine-1": "cpu",
    }


def test_each_vendor_has_its_resource_taint_and_label(specs):
    for name, vendor in [("engine-0-h100", "nvidia"), ("engine-0-mi300x", "amd")]:
        spec = specs[name]
        limits = spec["containers"][0]["resources"]["limits"]
        assert {key for key in limits if key.endswith("/gpu")} == {f"{vendor}.com/gpu"}
        assert [one["key"] for one in spec["tolerations"]] == [f"{vendor}.com/gpu"]
        node = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (expression,) = node["nodeSelectorTerms"][0]["matchExpressions"]
        assert expression["key"].startswith(f"{vendor}.com/gpu.product")
    assert "tolerations" not in specs["engine-1"]
    assert "affinity" not in specs["engine-1"]


def test_only_amd_s_pods_join_the_groups_of_its_devices(specs):
    joined = {
        name: spec["securityContext"].get("supplementalGroups") for name, spec in specs.items()
    }
    assert joined.pop("engine-0-mi300x") == [44, 109]
    assert set(joined.values()) == {None}


def test_the_pods_of_two_vendors_are_otherwise_the_same(specs):
    def rest(name):
        spec = dict(specs[name])
        container = dict(spec.pop("containers")[0])
        for key in ("image", "resources"):
            container.pop(key)
        for key in ("tolerations", "affinity", "securityContext"):
            spec.pop(key)
        return spec, container

    assert rest("engine-0-h100") == rest("engine-0-mi300x")


@pytest.mark.parametrize("accelerator", ACCELERATORS, ids=lambda accelerator: accelerator.name)
def test_pods_of_every_known_accelerator_select_its_nodes(render, groups, accelerator):
    values = {
        "fleet": {
            "models": [
                {
                    "id": "coder",
                    "source": "Qwen/Qwen3-Coder-30B-A3B-Instruct",
                    "accelerator": accelerator.ray_name,
                    "layout": {"tensor_parallel_size": 2},
                }
            ]
        }
    }
    spec = groups(render(values))["engine-0"]["template"]["spec"]
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"] == [
        {
            "key": accelerator.vendor.node_label,
            "operator": "In",
            "values": list(accelerator.node_labels),
        }
    ]
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits[accelerator.vendor.kubernetes_resource] == "2"


def test_an_unknown_accelerator_is_nvidia_s_unless_its_name_starts_with_amd(render, groups):
    model = {"id": "coder", "source": "/weights/mine", "layout": {}}
    layout = {"tensor_parallel_size": 2}
    for name, resource in [("L40S", "nvidia.com/gpu"), ("AMD-Instinct-MI210", "amd.com/gpu")]:
        values = {"fleet": {"models": [model | {"accelerator": name, "layout": layout}]}}
        spec = groups(render(values))["engine-0"]["template"]["spec"]
        assert spec["containers"][0]["resources"]["limits"][resource] == "2"
        assert "affinity" not in spec
